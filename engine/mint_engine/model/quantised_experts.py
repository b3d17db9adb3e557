"""Routed experts that stay quantised in memory, as in a base's files; those that a step needs are dequantised for it.

So a trillion parameters take a quarter or half of their size in bfloat16. An expert is dequantised to the same
numbers as if all were: answers and gradients are bit-identical, except where kernels for GPUs multiply by what is
stored (`product`), and add up in another order.

Letters in shapes: E experts, N of them that are dequantised at once, O outputs, I inputs, P rows.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_contracts.errors import CapacityExceeded, UnsupportedBase
from mint_engine.kernels.expert_structs import Codes, Stack
from mint_engine.model.stored import Stored

EXPERT = re.compile(r"\.experts\.(\d+)\.")
_STACKS = ("gate_up_proj", "down_proj")
# Most numbers of experts that are dequantised at once, unless a single expert has more: as many as stay in a
# processor's cache until they are multiplied, or as keep another device busy for longer than a launch takes.
_AT_ONCE, _AT_ONCE_BESIDE = 1 << 21, 1 << 26


class Form(Protocol):
    """How a tensor is quantised. Tensors of one form whose parts match in shape and type can be stored together."""

    def dequantise(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Dequantise N tensors, given as parts [N, *], into `out` [N, O, I]."""
        ...

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes | None:
        """Return N tensors, over the same memory, for kernels that dequantise by themselves; None if these cannot.

        They are [N, O, I] there, even if matrices are stored transposed.
        """
        ...


class Product(Protocol):
    """The product of rows, sorted by expert, with one linear of all experts. Never waits for the device."""

    def multiply(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Multiply x [P, I] -> [P, O]; rows of each expert end at `ends` [E] int32."""
        ...

    def multiply_back(self, dy: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Multiply the gradient of what `multiply` returns, dy [P, O], to that of x [P, I]."""
        ...


@runtime_checkable
class Quantised(Stored, Protocol):
    """A tensor that is dequantised when read."""

    dtype: torch.dtype  # of the dequantised numbers

    @property
    def form(self) -> Form:
        """How it is quantised."""
        ...

    def parts(self) -> tuple[Stored, ...]:
        """The tensors in files that it consists of."""
        ...

    def check(self) -> None:
        """Raise UnsupportedBase if their numbers do not fit each other."""
        ...


@runtime_checkable
class QuantisedStack(Stored, Protocol):
    """One tensor of all experts that is dequantised when read."""

    def experts(self) -> Sequence[Quantised]:
        """Each expert's tensor."""
        ...


@dataclass(frozen=True)
class QuantisedExperts:
    """A tensor of files that is to stay quantised, by expert: of one of them, or of all."""

    experts: tuple[Quantised, ...]

    def get_shape(self) -> list[int]:
        """See `Stored`."""
        return [len(self.experts), *self.experts[0].get_shape()]

    def get_dtype(self) -> str:
        """See `Stored`."""
        return self.experts[0].get_dtype()

    def __getitem__(self, part: Any) -> torch.Tensor:
        return torch.stack([each[...] for each in self.experts])[part]

    def cut(self, held: slice) -> "QuantisedExperts":
        """Keep only some of the experts."""
        return QuantisedExperts(self.experts[held])


class Place(NamedTuple):
    """Where one expert's tensor belongs: its stack in the model, and its index among the tensors that are merged."""

    stack: str  # e.g. "model.layers.0.mlp.experts.gate_up_proj"
    order: int


class _Linear(NamedTuple):
    """A linear of all of a layer's experts, in the files' form."""

    form: Form
    parts: tuple[torch.Tensor, ...]  # [E, *]
    dtype: torch.dtype
    shape: torch.Size  # [E, O, I]

    def some(self, experts: Sequence[int], out: torch.Tensor) -> None:
        """Dequantise these experts, in order, into `out` [N, O, I]."""
        first, last = experts[0], experts[-1]
        if len(experts) == last - first + 1:
            chosen = [part[first : last + 1] for part in self.parts]
        else:
            at = torch.tensor(experts).to(out.device, non_blocking=True)
            chosen = [part.index_select(0, at) for part in self.parts]
        self.form.dequantise(chosen, out)


class _Room:
    """Memory for weights, reused by each caller."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def of(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return memory of that shape; the previous caller's is overwritten."""
        if self._memory.numel() < shape.numel() or (self._memory.dtype, self._memory.device) != (dtype, device):
            self._memory = torch.empty(0)  # freed before more is allocated
            with torch.inference_mode(mode=False):  # otherwise only inference mode could write to it
                self._memory = torch.empty(shape.numel(), dtype=dtype, device=device)
        return self._memory[: shape.numel()].view(shape)


class QuantisedWeight:
    """One linear of a layer's experts, [E, O, I], of which some are dequantised at a time. It never changes."""

    ndim = 3
    product: Product | None = None  # by kernels for GPUs that dequantise by themselves, if they can be used
    _is_hf_initialized = True  # so that transformers does not initialise it

    def __init__(self, linears: Sequence[_Linear], room: _Room) -> None:
        """Join linears whose outputs are stacked one below another."""
        self._linears, self._room = linears, room
        codes = [each.form.codes(each.parts) for each in linears]
        self._codes = tuple(each for each in codes if each is not None) if None not in codes else ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to which they are dequantised."""
        return self._linears[0].dtype

    @property
    def shape(self) -> torch.Size:
        """The shape as of a tensor: [E, O, I]."""
        experts, _, inputs = self._linears[0].shape
        return torch.Size((experts, sum(each.shape[1] for each in self._linears), inputs))

    def coded(self) -> Stack | None:
        """Return it for kernels that dequantise and multiply by themselves; None if these cannot."""
        outputs = sum(each.codes.shape[1] for each in self._codes)
        if not outputs:
            return None
        experts, *matrix = self.shape
        return Stack(torch.Size((experts, outputs, prod(matrix) // outputs)), None, self._codes)

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        whole = torch.empty(self.shape[1:], dtype=self.dtype, device=self._device)
        self._dequantise([int(expert)], whole[None])
        return whole

    def groups(self, experts: Sequence[int]) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yield some experts at a time and their weights [N, O, I], valid until the next unless gradients are on.

        They are laid out as in a tensor of all experts: how products round depends on their inputs' layout.
        """
        shape, device = self.shape, self._device
        many = max(1, (_AT_ONCE if device.type == "cpu" else _AT_ONCE_BESIDE) // prod(shape[1:]))
        for first in range(0, len(experts), many):
            some = experts[first : first + many]
            room = _Room() if torch.is_grad_enabled() else self._room
            weights = room.of(torch.Size((len(some), *shape[1:])), self.dtype, device)
            self._dequantise(some, weights)
            yield some, weights

    def _dequantise(self, experts: Sequence[int], out: torch.Tensor) -> None:
        rows = torch.split(out, [each.shape[1] for each in self._linears], dim=1)
        for linear, own in zip(self._linears, rows, strict=True):
            linear.some(experts, own)

    @property
    def _device(self) -> torch.device:
        return self._linears[0].parts[0].device

    def __deepcopy__(self, _: Any) -> "QuantisedWeight":
        return self  # like parameters that a model shares with its copy

    def cut(self, held: slice) -> "QuantisedWeight":
        """Copy some of the experts, so that the others can be freed."""
        return QuantisedWeight(
            [
                linear._replace(
                    parts=tuple(part[held].clone() for part in linear.parts),
                    shape=torch.Size((len(range(linear.shape[0])[held]), *linear.shape[1:])),
                )
                for linear in self._linears
            ],
            self._room,
        )

    def to(self, device: torch.device, room: _Room) -> "QuantisedWeight":
        """Return the same in a device's memory; `room` is where experts are dequantised."""
        return QuantisedWeight(
            [each._replace(parts=tuple(part.to(device) for part in each.parts)) for each in self._linears], room
        )


def by_expert(
    weight: torch.Tensor | QuantisedWeight, bounds: Sequence[int]
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield each expert with rows `bounds[e]` to `bounds[e + 1]`: number, rows, and weight, valid until the next."""
    rows = [slice(*span) for span in pairwise(bounds)]
    chosen = [expert for expert, own in enumerate(rows) if own.start < own.stop]
    groups = (
        weight.groups(chosen) if isinstance(weight, QuantisedWeight) else [(chosen, [weight[at] for at in chosen])]
    )
    for experts, weights in groups:
        yield from ((at, rows[at], own) for at, own in zip(experts, weights, strict=True))


def by_group(weight: QuantisedWeight, bounds: Sequence[int]) -> Iterator[tuple[slice, list[int], torch.Tensor]]:
    """Yield some experts at a time: their rows, where each expert's begin in them, and their weights [N, O, I]."""
    chosen = [expert for expert, (start, stop) in enumerate(pairwise(bounds)) if start < stop]
    for experts, weights in weight.groups(chosen):
        first, last = bounds[experts[0]], bounds[experts[-1] + 1]
        yield slice(first, last), [*(bounds[at] - first for at in experts), last - first], weights


def keep_experts(tensors: Mapping[str, Stored], subject: str) -> dict[str, Stored]:
    """Wrap a base's quantised routed experts as `QuantisedExperts`. Raises UnsupportedBase if it has none."""
    found = {name: _kept(name, tensor) or tensor for name, tensor in tensors.items()}
    if not any(isinstance(each, QuantisedExperts) for each in found.values()):
        raise nothing_to_keep(subject)
    return found


def nothing_to_keep(subject: str) -> UnsupportedBase:
    """Return the error for a base without quantised experts that is to keep them."""
    return UnsupportedBase(
        "quantisedExperts", f"is true, but {subject} has no quantised routed experts; leave it out"
    )


def _kept(name: str, tensor: Stored) -> QuantisedExperts | None:
    if isinstance(tensor, QuantisedStack):
        return QuantisedExperts(tuple(tensor.experts()))
    return QuantisedExperts((tensor,)) if isinstance(tensor, Quantised) and EXPERT.search(name) else None


def kind_of(tensor: Quantised) -> Hashable:
    """Return a key that is equal for tensors that can be stored together."""
    parts = tensor.parts()
    return tensor.form, *((tuple(each.get_shape()), each.get_dtype()) for each in parts)


def put_stacks(
    model: PreTrainedModel, tensors: Iterable[tuple[str, Place, QuantisedExperts]], device: torch.device
) -> None:
    """Replace a model's stacks with kept tensors, given with names and places; reads them into a device's memory.

    Tensors of one place are of one kind. Those of no stack are left out, e.g. of layers that predict further tokens.
    Raises UnsupportedBase.
    """
    found: dict[str, dict[int, dict[int, Quantised]]] = defaultdict(lambda: defaultdict(dict))
    held = {f"{path}.{name}" for path, _ in model.named_modules() for name in _STACKS}
    for name, place, tensor in tensors:
        number = EXPERT.search(name)
        if place.stack in held:
            found[place.stack][place.order].update(enumerate(tensor.experts, int(number[1]) if number else 0))
    room = _Room()
    for path, orders in found.items():
        linears = [
            [each for _, each in sorted(orders[at].items(), key=lambda item: item[0])] for at in sorted(orders)
        ]
        _put(model, path, linears, room, device)


def _put(
    model: PreTrainedModel, path: str, linears: Sequence[Sequence[Quantised]], room: _Room, device: torch.device
) -> None:
    parent, _, name = path.rpartition(".")
    module: Any = model.get_submodule(parent)
    count, *expected = getattr(module, name).shape
    shapes = [experts[0].get_shape() for experts in linears]
    shape, least = [sum(each[0] for each in shapes), *shapes[0][1:]], min(map(len, linears))
    if shape != expected or any(len(experts) != count for experts in linears):
        problem = f"has {least} experts of {shape}, and by its config.json {count} of {expected}"
        raise UnsupportedBase(path, f"{problem}; get its files again")
    delattr(module, name)
    setattr(module, name, QuantisedWeight([_read(experts, device) for experts in linears], room))


def _read(experts: Sequence[Quantised], device: torch.device) -> _Linear:
    """Read tensors of one kind, one after another, onto a device. Raises UnsupportedBase if they do not match."""
    parts: tuple[torch.Tensor, ...] = ()
    for at, expert in enumerate(experts):
        expert.check()
        if (shape := expert.get_shape()) != (first := experts[0].get_shape()):
            raise UnsupportedBase(
                "quantisedExperts", f"is true, but of experts of one layer one is {first}, one {shape}"
            )
        read = [each[...] for each in expert.parts()]
        parts = parts or tuple(
            torch.empty((len(experts), *each.shape), dtype=each.dtype, device=device) for each in read
        )
        for part, own in zip(parts, read, strict=True):
            part[at] = own
    one = experts[0]
    return _Linear(one.form, parts, one.dtype, torch.Size((len(experts), *one.get_shape())))


def move(model: nn.Module, device: torch.device) -> None:
    """Move all of a model to a device's memory. Raises CapacityExceeded if it does not fit there."""
    try:
        nn.Module.to(model, device)
        room = _Room()
        for module in model.modules():
            for name in _STACKS:
                if isinstance(stack := getattr(module, name, None), QuantisedWeight):
                    setattr(module, name, stack.to(device, room))
    except torch.OutOfMemoryError:
        raise CapacityExceeded(
            "base",
            "needs more memory than this GPU has free; use larger GPUs or more of them (tensorParallelSize), or a "
            "quantised base with quantisedExperts; `mint plan` says what fits",
        ) from None


def every_weight(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a module's parameters by name, and its experts' weights that stay quantised, see `expert_weights`."""
    yield from module.named_parameters(prefix=prefix)
    yield from expert_weights(module, prefix)


def expert_weights(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of experts that stay quantised by name, dequantised one by one and valid until the next."""
    for path, _, stack in kept_stacks(module, prefix):
        for experts, weights in stack.groups(range(stack.shape[0])):
            for at, weight in zip(experts, weights, strict=True):
                yield f"{path} of expert {at}", weight


def kept_stacks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any, QuantisedWeight]]:
    """Yield a module's stacks that stay quantised: path, the experts they are of, and weight."""
    for path, each in module.named_modules(prefix=prefix):
        for name in _STACKS:
            if isinstance(stack := getattr(each, name, None), QuantisedWeight):
                yield f"{path}.{name}", each, stack
