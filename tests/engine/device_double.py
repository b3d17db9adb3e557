"""A stand-in for a GPU where there is none: it tells in which memory a tensor is, and when the host waits.

    with standing_in() as device:            # from now on device "cuda" is there
        ...
    device.waits, device.copies

It stands in for a device's placement and memory, and for nothing else: its numbers are the CPU's own, in its time. A
tensor on "cuda" is a wrapper around one of the CPU. What CUDA refuses is refused: operations on tensors of both
memories, and reading the device's from the host. What makes the host wait for what was computed before is counted, by
its kind. How much memory the device has, and others take of it, can be set; nothing is refused for lack of it.

It is made of torch's means for classes of tensors, and of other functions in the place of those that make tensors.
To torch itself the wrappers are on "meta", a device that it does nothing for: its code in C++ knows no other device
without a driver, so tensors that C++ makes beside another are noticed here as such, and refused as a defect of this.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
import triton.runtime.interpreter
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import JITFunction

from tests.engine.interpreted import Language

MEMORY = 80 << 30
CUDA, META, HOST = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")

_FACTORIES = (
    *("tensor", "as_tensor", "zeros", "empty", "ones", "full", "arange", "zeros_like", "empty_like", "ones_like"),
    *("full_like", "scalar_tensor", "eye", "linspace"),
)
# What has to know numbers to know how large its result is.
_SIZED = frozenset({"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive", "equal"})
_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
_WHOLE = frozenset({"scaled_dot_product_attention", "where"})  # what they are made of makes tensors in C++


@dataclass
class Seen:
    """What the host has done with the device since it was forgotten last."""

    waits: Counter[str] = field(default_factory=Counter)  # by what for
    copies: Counter[str] = field(default_factory=Counter)  # to the device: "pinned" or "pageable"
    memory: int = MEMORY  # the device's, in bytes
    others: int = 0  # of it, taken by other processes

    @property
    def allocated(self) -> int:
        """Bytes of the tensors that are on the device now, each storage once."""
        storages = [each.untyped_storage() for each in _present.values()]
        return sum({each.data_ptr(): each.nbytes() for each in storages}.values())

    def forget(self) -> None:
        self.waits.clear()
        self.copies.clear()


_present = WeakValueDictionary[int, torch.Tensor]()  # what is on the device
_seen, _pinned = Seen(), dict[int, StorageWeakRef]()  # by address, which others have once it is free
# torch's own; of any type, as what stands in for them is
_plain_to: Any = torch.Tensor.to
_plain_module_to: Any = torch.nn.Module.to
_plain_tensor: Any = torch.tensor
_plain_where: Any = torch.where
_plain_attend: Any = functional.scaled_dot_product_attention


class OnDevice(torch.Tensor):
    """A tensor of the device; `host` has its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type["OnDevice"], host: torch.Tensor) -> "OnDevice":
        assert type(host) is not OnDevice
        if torch.is_inference_mode_enabled() and not host.is_inference():  # a view of what is none
            with torch.inference_mode(False):
                return cls.__new__(cls, host)
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, device=META
        )
        made.host = host
        _present[id(host)] = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _Call(func).run(args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.host!r})"

    device: Any = property(lambda self: CUDA)
    is_cuda: Any = property(lambda self: True)
    is_meta: Any = property(lambda self: False)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def data_ptr(self) -> int:
        raise RuntimeError("the address of what is on cuda:0 is of no use to the host")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Any:
        return torch.Tensor.__getitem__(self, _placed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _placed(index)
        by_tensor = any(torch.is_tensor(each) for each in (index if isinstance(index, tuple) else (index,)))
        if by_tensor and not torch.is_tensor(value):
            value = OnDevice(_plain_tensor(value, dtype=self.dtype))
        torch.Tensor.__setitem__(self, index, value)


def _placed(index: Any) -> Any:
    """Lists of rows come to the device, as CUDA has it."""
    if isinstance(index, tuple):
        return tuple(map(_placed, index))
    return torch.tensor(index, device=CUDA) if isinstance(index, list) else index


class _Call:
    """One of torch's operations, of which some tensors are on the device."""

    def __init__(self, func: Any) -> None:
        self._func, self._name, self._zero = func, func._overloadpacket.__name__, False

    def run(self, args: Any, kwargs: Any) -> Any:
        if self._name not in _WHOLE and self._func._can_decompose():
            found = self._func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if self._name == "_fused_sdp_choice":
            return 0  # attention as the operations that it is made of
        if self._name == "histc":  # which a CPU has of no whole numbers
            _seen.waits["histc"] += 1
            return OnDevice(torch.histc(args[0].host.float(), *args[1:], **kwargs).to(args[0].dtype))
        made = [each for each in args if type(each) is torch.Tensor and each.device == META]
        self._zero = self._name == "where" and [each.dim() for each in made] == [0]  # where no gradient goes back
        self._note(args, kwargs)
        host, given = self._to_host(args, kwargs)
        found = self._func(*tree_map(self._unwrap, args), **tree_map(self._unwrap, given))
        written = [each for each in self._func._schema.arguments if each.alias_info and each.alias_info.is_write]
        if any(each.alias_info and each.alias_info.is_write for each in self._func._schema.returns):
            names = [each.name for each in self._func._schema.arguments]
            own = [kwargs[each.name] if each.name in kwargs else args[names.index(each.name)] for each in written]
            assert all(each.shape == each.host.shape for each in own if isinstance(each, OnDevice)), self._func
            return own[0] if len(self._func._schema.returns) == 1 else tuple(own)
        if host or self._name == "_local_scalar_dense":
            return found
        return tree_map(lambda each: OnDevice(each) if isinstance(each, torch.Tensor) else each, found)

    def _note(self, args: Any, kwargs: Any) -> None:
        if self._name in _SIZED or (self._name == "repeat_interleave" and kwargs.get("output_size") is None):
            _seen.waits[self._name] += 1
        elif self._name == "_local_scalar_dense":
            _seen.waits["a number"] += 1
        elif self._name == "copy_" and not isinstance(args[0], OnDevice):
            _seen.waits["numbers"] += 1
        elif self._name == "copy_" and not isinstance(args[1], OnDevice):
            _note_copy(args[1], non_blocking=bool(args[2:] and args[2]) or kwargs.get("non_blocking", False))
        elif self._name in _INDEXED:
            if not isinstance(args[0], OnDevice):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                )
            for each in (each for each in args[1] if each is not None):
                if not isinstance(each, OnDevice):
                    _note_copy(each, non_blocking=False)
                elif each.dtype in (torch.bool, torch.uint8):
                    _seen.waits["rows of a mask"] += 1

    def _to_host(self, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """Whether the result belongs to the host; and what is given by name, for tensors of the host."""
        if "device" not in kwargs:
            return False, kwargs
        host = kwargs["device"] is not None and torch.device(kwargs["device"]) == HOST
        if host and self._name == "_to_copy":
            _seen.waits["numbers"] += 1
        return host, {key: each for key, each in kwargs.items() if key != "pin_memory"} | {"device": HOST}

    def _unwrap(self, given: Any) -> Any:
        if isinstance(given, OnDevice):
            return given.host
        if isinstance(given, torch.Tensor):
            if given.device == META:
                assert self._zero, f"{self._func} has a tensor that C++ made beside one of the device"
                return torch.zeros((), dtype=given.dtype)
            if given.dim() and self._name not in _INDEXED and self._name != "copy_":
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({self._func})"
                )
        return given


def _note_copy(source: torch.Tensor, *, non_blocking: bool) -> None:
    held = _pinned.get(source.untyped_storage().data_ptr())
    pinned = held is not None and not held.expired()  # type: ignore[no-untyped-call]
    _seen.copies["pinned" if pinned else "pageable"] += 1
    if not (pinned and non_blocking):
        _seen.waits["a copy to the device"] += 1


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _made(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if not _is_cuda(kwargs.get("device")):
            return plain(*args, **kwargs)
        if args and isinstance(args[0], OnDevice):
            return plain(*args, **{name: each for name, each in kwargs.items() if name != "device"})
        found = plain(*args, **kwargs | {"device": HOST})
        if plain is _plain_tensor:
            _note_copy(found, non_blocking=False)
        return OnDevice(found)

    return make


def _where(condition: torch.Tensor, *values: Any) -> Any:
    """`torch.where`, whose numbers C++ would make tensors of."""
    if not isinstance(condition, OnDevice):
        return _plain_where(condition, *values)
    dtype = next((each.dtype for each in values if torch.is_tensor(each)), torch.get_default_dtype())
    given = (each if torch.is_tensor(each) else OnDevice(_plain_tensor(each, dtype=dtype)) for each in values)
    return _plain_where(condition, *given)


class _Attend(torch.autograd.Function):
    """Attention whose way back C++ would make tensors for, all of it on the host."""

    @staticmethod
    def forward(ctx: Any, mask: OnDevice, options: dict[str, Any], *given: OnDevice) -> OnDevice:
        ctx.save_for_backward(*given)
        ctx.rest = options | {"attn_mask": mask.host}
        return OnDevice(_plain_attend(*(each.host for each in given), **ctx.rest))

    @staticmethod
    def backward(ctx: Any, *slopes: OnDevice) -> Any:
        given = [each.host.detach().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            found = _plain_attend(*given, **ctx.rest)
        return None, None, *map(OnDevice, torch.autograd.grad(found, given, slopes[0].host))


def _attend(*given: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any) -> Any:
    if isinstance(given[0], OnDevice) and attn_mask is not None:
        return _Attend.apply(attn_mask, options, *given)
    return _plain_attend(*given, attn_mask=attn_mask, **options)


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """`Tensor.to`, of which C++ would take the device for another."""
    copy, here = kwargs.pop("copy", False), isinstance(self, OnDevice)
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    dtype, more = dtype or self.dtype, {} if layout is None else {"memory_format": layout}
    if device is None or device.type == ("cuda" if here else "cpu"):
        return _plain_to(self, dtype=dtype, copy=copy, **more)
    if device.type == "cuda":
        _note_copy(self, non_blocking=non_blocking)
        return OnDevice(_plain_to(self.detach(), dtype=dtype, copy=True, **more))
    return _plain_to(self, device=device, dtype=dtype, **more)


def _module_to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`Module.to`, which changes parameters to those of another class where they come to the device."""
    torch.__future__.set_swap_module_params_on_conversion(any(map(_is_cuda, (*args, *kwargs.values()))))
    try:
        return _plain_module_to(self, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _pin(self: torch.Tensor) -> torch.Tensor:
    assert not isinstance(self, OnDevice), "only what is in the host's memory can be pinned there"
    pinned = self.clone()
    _pinned[pinned.untyped_storage().data_ptr()] = StorageWeakRef(pinned.untyped_storage())  # type: ignore[no-untyped-call]
    return pinned


class _Launch:
    """Launches interpreted kernels on what is on the device. Pieces of the host's memory are refused, as by CUDA."""

    def __init__(self, plain: Callable[..., None]) -> None:
        self._plain = plain

    def __get__(self, grid: Any, _: Any = None) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            for each in args:
                if isinstance(each, torch.Tensor) and not isinstance(each, OnDevice):
                    raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            self._plain(grid, *(each.host if isinstance(each, OnDevice) else each for each in args), **kwargs)

        return launch


class Silent:
    """A kernel that computes nothing."""

    def __getitem__(self, _: Any) -> Any:
        return lambda *_, **__: None


class Noted:
    """Notes in which forms a kernel is launched: each is compiled, which takes seconds."""

    def __init__(self, kernel: Any, forms: set[tuple[str, Any]]) -> None:
        self._kernel, self._forms = kernel, forms
        self._params = JITFunction(kernel.fn, **kernel.kwargs).params

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            told = tuple(map(self._specialised, self._params, args))
            self._forms.add((self._kernel.fn.__name__, (told, tuple(sorted(options.items())))))
            self._kernel[grid](*args, **options)

        return launch

    def _specialised(self, param: Any, given: Any) -> Any:
        """What of an argument Triton compiles a program for: its type, whether it is aligned, whether it is 1."""
        own = given.host if isinstance(given, OnDevice) else given
        aligned = not param.do_not_specialize_on_alignment
        return native_specialize_impl(BaseBackend, own, param.is_const, not param.do_not_specialize, aligned)


class _Stream:
    """All streams are one, whose work is done when it is told."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, _: "_Stream") -> None:
        pass

    def synchronize(self) -> None:
        _seen.waits["a stream"] += 1


@contextmanager
def standing_in() -> Iterator[Seen]:
    """There is a device while it lasts; tells what the host does with it."""
    _device_constructors()  # torch's own list, which it makes once
    put: list[tuple[Any, str, Any]] = [(torch, name, _made(getattr(torch, name))) for name in _FACTORIES]
    put += [(torch.Tensor, "to", _to), (torch.Tensor, "pin_memory", _pin), (torch.nn.Module, "to", _module_to)]
    put += [(torch.Tensor, "cpu", lambda self: _to(self, HOST)), (torch, "where", _where)]
    put += [(functional, "scaled_dot_product_attention", _attend)]
    executor: Any = triton.runtime.interpreter.GridExecutor
    put += [(executor, "__call__", _Launch(executor.__call__))]
    put += [(triton.runtime.interpreter, "_patch_lang", Language().patch)]
    # It would copy all that kernels are given, and back.
    put += [(executor, "_init_args_hst", lambda _, args, kwargs: (args, kwargs))]
    put += [(executor, "_restore_args_dev", lambda *_: None)]
    found: dict[str, Any] = {
        "device_count": lambda: 1, "set_device": lambda _: None, "get_device_capability": lambda _: (9, 0),
        "mem_get_info": lambda _: (_seen.memory - _seen.others - _seen.allocated, _seen.memory),
        "memory_allocated": lambda _: _seen.allocated, "memory_reserved": lambda _: _seen.allocated,
        "current_stream": _Stream, "Stream": _Stream, "stream": lambda _: nullcontext(), "empty_cache": lambda: None,
    }  # fmt: skip
    patches = [patch.object(*each) for each in (*put, *((torch.cuda, name, each) for name, each in found.items()))]
    _seen.forget()
    _seen.memory, _seen.others = MEMORY, 0
    _present.clear()  # what an earlier one has left to the garbage collector is not on this device
    for each in patches:
        each.start()
    try:
        yield _seen
    finally:
        for each in reversed(patches):
            each.stop()
        _pinned.clear()
