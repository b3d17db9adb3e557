"""A saved policy: one safetensors file of its vectors, with everything else as JSON in the metadata.

A policy that is read back continues with exactly the numbers that it would have had.
"""

import ctypes
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from mint_contracts.errors import CorruptFile, WrongBase
from mint_contracts.listing import and_more
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.header import LENGTH_BYTES, TensorSpec, parse
from mint_engine.adapters.packed import Layout, Place, fingerprint, lay_out
from mint_engine.training.policy import Form, Policy, moved, vector

_log = structlog.get_logger(__name__)

VERSION = 1
_POLICY = "mint.policy"
_SHAPES = "mint.shapes"  # a separate key, since older engines refuse unknown fields in the other
_VECTORS = ("weights", "exp_avg", "exp_avg_sq")
_TO_DO = "Give the BaseModel the base that it was trained on, or create the policy again"
_GRADIENT = "gradient"  # only in a policy that was saved with an unused gradient


class _SavedPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The metadata. `ranks` is by module path and `scalings` in the same order, that of the base's modules."""

    version: int
    base: str  # fingerprint of all modules that could be trained, which older engines compare
    config: str
    ranks: dict[str, int]
    scalings: list[float]
    step: int
    sequence: int  # always 0, since the record has it (see `checkpoints`); older engines require the field
    normaliser: float
    sums: str
    broken: bool


_Shape = tuple[int, int, int]  # experts, in and out features

# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_HEADER, _METADATA = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(dict[str, str])
_READ_POLICY, _READ_SHAPES = msgspec.json.Decoder(_SavedPolicy), msgspec.json.Decoder(dict[str, _Shape])


def to_bytes(policy: Policy) -> bytearray:
    """Return a policy's file. On any thread: releases the interpreter lock while it copies, like `from_bytes`."""
    form = policy.form
    saved = _SavedPolicy(
        version=VERSION,
        base=form.base,
        config=form.config.decode(),
        ranks={place.path: place.rank for place in form.layout.places},
        scalings=list(form.scalings),
        step=policy.step,
        sequence=0,
        normaliser=policy.normaliser,
        sums=policy.sums,
        broken=policy.broken,
    )
    tensors = {name: getattr(policy, name) for name in _VECTORS}
    if policy.gradient is not None:
        tensors[_GRADIENT] = policy.gradient
    shapes = {place.path: _shape_of(place) for place in form.layout.places}
    metadata = {key: msgspec.json.encode(each).decode() for key, each in ((_POLICY, saved), (_SHAPES, shapes))}
    return _file(metadata, {name: tensors[name] for name in sorted(tensors)})


def from_bytes(
    data: bytes | bytearray, name: str, modules: Mapping[str, Module], device: torch.device, subject: str
) -> Policy:
    """Read a policy's file, under the name `name`.

    Raises CorruptFile for any other content, and WrongBase if a module that it was trained on is missing or has
    another shape. On any thread: other threads run meanwhile, while safetensors' own `load` blocks them as it copies.
    """
    saved, shapes = _read_metadata(data, subject)
    base = fingerprint(modules)
    form = Form(saved.config.encode(), base, lay_out(modules, saved.ranks), tuple(saved.scalings))
    _check_modules(saved.ranks, shapes, form.layout, subject)
    tensors = parse(_header(data), subject, file_bytes=len(data))
    if saved.base != base and not shapes:
        if _numbers(tensors) != form.layout.elements:
            raise WrongBase(subject, "was trained on modules of other shapes than the base model has. " + _TO_DO)
        # Most likely other targetModules. If it is another base, only this warning shows it.
        _log.warning("policy_without_shapes", policy=name, modules=len(saved.ranks), elements=form.layout.elements)
    _check_vectors(tensors, form.layout, subject)
    ready = {key: moved(_vector(data, spec), device) for key, spec in tensors.items()}
    return Policy(
        name, form, ready["weights"], ready["exp_avg"], ready["exp_avg_sq"], step=saved.step,
        gradient=ready.get(_GRADIENT), normaliser=saved.normaliser, sums=saved.sums, broken=saved.broken,
    )  # fmt: skip


def numbers_in(data: bytes | bytearray) -> int:
    """Return the bytes of a policy's file that are its vectors: all but the head."""
    return len(data) - LENGTH_BYTES - len(_header(data))


def _file(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bytearray:
    """Return the same bytes as safetensors' `save` for float32 vectors.

    That one holds the interpreter lock while it copies, which delays every step of the engine; numpy releases it.
    """
    header, end = dict[str, object](__metadata__=metadata), 0
    for name, each in tensors.items():
        begin, end = end, end + each.nbytes
        header[name] = {"dtype": "F32", "shape": list(each.shape), "data_offsets": [begin, end]}
    head = msgspec.json.encode(header)
    head += b" " * (-len(head) % LENGTH_BYTES)
    start = LENGTH_BYTES + len(head)
    data = _unfilled(start + end)
    data[:start] = len(head).to_bytes(LENGTH_BYTES, "little") + head
    numbers: NDArray[np.float32] = np.frombuffer(data, "<f4", offset=start)
    np.concatenate([each.cpu().numpy() for each in tensors.values()], out=numbers)
    return data


def _unfilled(nbytes: int) -> bytearray:
    """Return uninitialised memory: `bytearray` itself would fill it, holding the interpreter lock."""
    make = ctypes.pythonapi.PyByteArray_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
    data: bytearray = make(None, nbytes)
    return data


def _header(data: bytes | bytearray) -> bytes:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    return bytes(data[LENGTH_BYTES : LENGTH_BYTES + length])


def _vector(data: bytes | bytearray, spec: TensorSpec) -> torch.Tensor:
    """Copy one of the file's vectors, [n] float32 on the CPU."""
    stored: NDArray[np.float32] = np.frombuffer(data, "<f4", spec.shape[0], spec.begin)
    found = vector(spec.shape[0], torch.device("cpu"))
    np.copyto(found.numpy(), stored)
    return found


def _read_metadata(data: bytes | bytearray, subject: str) -> tuple[_SavedPolicy, dict[str, _Shape]]:
    """Return the metadata, and the modules' shapes; none in a file that an older engine has written."""
    try:
        header = _HEADER.decode(_header(data))
        metadata = _METADATA.decode(header["__metadata__"])
        saved = _READ_POLICY.decode(metadata[_POLICY])
        shapes = _READ_SHAPES.decode(metadata[_SHAPES]) if _SHAPES in metadata else {}
    except (msgspec.MsgspecError, KeyError, UnicodeError) as error:
        raise CorruptFile(subject, f"is not a saved policy ({type(error).__name__}: {error})") from None
    if saved.version != VERSION:
        raise CorruptFile(subject, f"is a saved policy of format {saved.version}; this engine reads {VERSION}")
    return saved, shapes


def _check_modules(trained: Iterable[str], shapes: Mapping[str, _Shape], layout: Layout, subject: str) -> None:
    """Raise WrongBase unless all of a policy's modules are here, with the shapes and order of when it was saved."""
    paths, here = list(trained), {place.path: place for place in layout.places}
    if missing := [path for path in paths if path not in here]:
        names = ", ".join(sorted({path.rpartition(".")[2] for path in missing}))
        raise WrongBase(
            subject,
            f"was trained on {missing[0]}{and_more(missing, 1)}, which adapters.targetModules of the BaseModel does "
            f"not name, or its base does not have. Add {names} to targetModules, then resume the policy",
        )
    for path, shape in shapes.items():
        if path in here and shape != (found := _shape_of(here[path])):
            reason = f"was trained on {path} of {_features(shape)} where the base model has {_features(found)}. "
            raise WrongBase(subject, reason + _TO_DO)
    if paths != list(here):
        raise WrongBase(subject, "was trained on modules that the base model has in another order. " + _TO_DO)


def _shape_of(place: Place) -> _Shape:
    return place.experts, place.in_features, place.out_features


def _features(shape: _Shape) -> str:
    experts, *features = shape
    return " to ".join(map(str, features)) + " features" + (f" of {experts} experts" if experts else "")


def _numbers(tensors: Mapping[str, TensorSpec]) -> int:
    """Return the length of a file's vectors; -1 if it has none."""
    found = tensors.get(_VECTORS[0])
    return found.shape[0] if found is not None and len(found.shape) == 1 else -1


def _check_vectors(tensors: Mapping[str, TensorSpec], layout: Layout, subject: str) -> None:
    if tensors.keys() - {_GRADIENT} != set(_VECTORS):
        raise CorruptFile(subject, f"holds {', '.join(sorted(tensors))} where {', '.join(_VECTORS)} must be")
    for name, spec in tensors.items():
        if spec.dtype != "F32" or spec.shape != (layout.elements,):
            what = f"holds {name} of {spec.dtype} {list(spec.shape)}"
            raise CorruptFile(subject, f"{what} where {layout.elements} float32 must be")
