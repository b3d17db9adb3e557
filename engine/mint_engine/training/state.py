"""A policy at rest: one safetensors file of its vectors, with what else there is to it as JSON in the metadata.

A policy read back goes on with the very numbers that it would have had.
"""

import ctypes
from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from mint_contracts.errors import CorruptFile, WrongBase
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.header import LENGTH_BYTES, TensorSpec, parse
from mint_engine.adapters.packed import Layout, fingerprint, lay_out
from mint_engine.training.policy import Form, Policy, moved, vector

VERSION = 1
_TOLD = "mint.policy"
_VECTORS = ("weights", "exp_avg", "exp_avg_sq")
_GRADIENT = "gradient"  # only of a policy that was saved between two steps


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The metadata. `ranks` and `scalings` are by module path, in the order of the base's modules."""

    version: int
    base: str
    config: str
    ranks: dict[str, int]
    scalings: list[float]
    step: int
    sequence: int
    normaliser: float
    sums: str
    broken: bool


# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_HEADER, _METADATA = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(dict[str, str])
_READ_TOLD = msgspec.json.Decoder(_Told)


def to_bytes(policy: Policy) -> bytearray:
    """The file of a policy. On any thread: others go on meanwhile, as with `from_bytes`."""
    form = policy.form
    told = _Told(
        version=VERSION,
        base=form.base,
        config=form.config.decode(),
        ranks={place.path: place.rank for place in form.layout.places},
        scalings=list(form.scalings),
        step=policy.step,
        sequence=policy.sequence,
        normaliser=policy.normaliser,
        sums=policy.sums,
        broken=policy.broken,
    )
    tensors = {name: getattr(policy, name) for name in _VECTORS}
    if policy.gradient is not None:
        tensors[_GRADIENT] = policy.gradient
    return _file({_TOLD: msgspec.json.encode(told).decode()}, {name: tensors[name] for name in sorted(tensors)})


def from_bytes(
    data: bytes | bytearray, name: str, modules: Mapping[str, Module], device: torch.device, subject: str
) -> Policy:
    """The policy of a file, under the name `name`.

    Raises CorruptFile for what is no such file, and WrongBase where it was trained over other modules. On any thread:
    others go on meanwhile, which safetensors' own `load` keeps from running while it copies.
    """
    told = _read_told(data, subject)
    if told.base != fingerprint(modules) or not modules.keys() >= told.ranks.keys():
        raise WrongBase(subject, "holds a policy that was trained over another base's modules")
    form = Form(told.config.encode(), told.base, lay_out(modules, told.ranks), tuple(told.scalings))
    tensors = parse(_header(data), subject, file_bytes=len(data)).tensors
    _check_vectors(tensors, form.layout, subject)
    ready = {key: moved(_vector(data, spec), device) for key, spec in tensors.items()}
    return Policy(
        name, form, ready["weights"], ready["exp_avg"], ready["exp_avg_sq"], step=told.step, sequence=told.sequence,
        gradient=ready.get(_GRADIENT), normaliser=told.normaliser, sums=told.sums, broken=told.broken,
    )  # fmt: skip


def _file(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bytearray:
    """What safetensors' `save` makes of float32 vectors, byte for byte.

    That holds the interpreter for as long as it copies, and so every step of an engine; numpy lets others run.
    """
    header, end = dict[str, object](__metadata__=metadata), 0
    for name, each in tensors.items():
        begin, end = end, end + each.nbytes
        header[name] = {"dtype": "F32", "shape": list(each.shape), "data_offsets": [begin, end]}
    told = msgspec.json.encode(header)
    told += b" " * (-len(told) % LENGTH_BYTES)
    start = LENGTH_BYTES + len(told)
    data = _unfilled(start + end)
    data[:start] = len(told).to_bytes(LENGTH_BYTES, "little") + told
    numbers: NDArray[np.float32] = np.frombuffer(data, "<f4", offset=start)
    np.concatenate([each.cpu().numpy() for each in tensors.values()], out=numbers)
    return data


def _unfilled(nbytes: int) -> bytearray:
    """Memory that nobody has touched: `bytearray` itself would fill it, and hold the interpreter for that."""
    make = ctypes.pythonapi.PyByteArray_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
    data: bytearray = make(None, nbytes)
    return data


def _header(data: bytes | bytearray) -> bytes:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    return bytes(data[LENGTH_BYTES : LENGTH_BYTES + length])


def _vector(data: bytes | bytearray, spec: TensorSpec) -> torch.Tensor:
    """One of the file's [n] float32, on the CPU."""
    stored: NDArray[np.float32] = np.frombuffer(data, "<f4", spec.shape[0], spec.begin)
    found = vector(spec.shape[0], torch.device("cpu"))
    np.copyto(found.numpy(), stored)
    return found


def _read_told(data: bytes | bytearray, subject: str) -> _Told:
    try:
        header = _HEADER.decode(_header(data))
        metadata = _METADATA.decode(header["__metadata__"])
        told = _READ_TOLD.decode(metadata[_TOLD])
    except (msgspec.MsgspecError, KeyError, UnicodeError) as error:
        raise CorruptFile(subject, f"is no saved policy ({type(error).__name__}: {error})") from None
    if told.version != VERSION:
        raise CorruptFile(subject, f"is a saved policy of format {told.version}; this engine reads {VERSION}")
    return told


def _check_vectors(tensors: Mapping[str, TensorSpec], layout: Layout, subject: str) -> None:
    if tensors.keys() - {_GRADIENT} != set(_VECTORS):
        raise CorruptFile(subject, f"holds {', '.join(sorted(tensors))} where {', '.join(_VECTORS)} must be")
    for name, spec in tensors.items():
        if spec.dtype != "F32" or spec.shape != (layout.elements,):
            what = f"holds {name} of {spec.dtype} {list(spec.shape)}"
            raise CorruptFile(subject, f"{what} where {layout.elements} float32 must be")
