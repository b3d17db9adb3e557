"""The header of a safetensors file, read with bounds of our own (https://github.com/huggingface/safetensors#format).

A file is 8 bytes N (little endian), N bytes of JSON, then the tensors' bytes. Nothing that a header claims is used to
allocate or read before it has been checked against these bounds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mint_contracts.errors import CorruptFile, UnsafeFormat, UnsupportedAdapter

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 32 << 20  # 37,248 tensors (all experts of a 30B-A3B) need 6 MiB
# Values of JSON: a tensor of two dimensions takes 8, and metadata may have others.
_VALUES_A_TENSOR, _OTHER_VALUES = 10, 1 << 16
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save: zip or bare pickle
POINTER = b"version https://git-lfs"  # the beginning of what a clone without git-lfs has in place of a file


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file: `begin` and `end` are byte offsets from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


Tensors = Mapping[str, TensorSpec]  # all of a file's, by name


def header_bytes(start: bytes, subject: str) -> int:
    """Return how many bytes of JSON follow the first eight. Raises CorruptFile, or UnsafeFormat for a pickle."""
    if start.startswith(_PICKLE_STARTS):
        raise UnsafeFormat(subject, "has pickled weights under a safetensors name; save it with safetensors")
    if start == POINTER[:LENGTH_BYTES]:
        raise CorruptFile(subject, "has a Git LFS pointer in place of its weights; fetch them with git lfs pull")
    if len(start) < LENGTH_BYTES:
        raise CorruptFile(subject, f"is truncated: {len(start)} bytes where a safetensors file has at least 8")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length < 2 or length > MAX_HEADER_BYTES:
        raise CorruptFile(subject, f"is not a safetensors file: its header claims {length} bytes")
    return length


def parse(header: bytes, subject: str, *, file_bytes: int | None = None, most: int | None = None) -> Tensors:
    """Parse a header (only its JSON) into the tensors that it lists.

    `file_bytes` is the file's true size, if known. Raises CorruptFile if names repeat, a dtype is not F32, F16 or
    BF16, or the tensors do not fill the file exactly, without overlap or gap; and, before it makes an object of any,
    UnsupportedAdapter if there may be far more than `most` tensors.
    """
    if most is not None and (values := _values(header)) > _VALUES_A_TENSOR * most + _OTHER_VALUES:
        raise UnsupportedAdapter(
            subject,
            f"has a safetensors header of {values} values, too many for the at most {most} tensors of an "
            "adapter of the base model; save it without others",
        )
    try:
        raw = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(subject, f"has an unreadable safetensors header ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise CorruptFile(subject, "has a safetensors header that is not a JSON object")
    raw.pop("__metadata__", None)
    start = LENGTH_BYTES + len(header)
    tensors = {name: _tensor(name, entry, start, subject) for name, entry in raw.items()}
    end = start
    for spec in sorted(tensors.values(), key=lambda each: (each.begin, each.end)):
        if spec.begin != end:
            raise CorruptFile(subject, f"has a gap or overlap in its safetensors file before {spec.name[:200]!r}")
        end = spec.end
    if file_bytes is not None and file_bytes != end:
        problem = "is truncated" if file_bytes < end else "has bytes beyond its tensors"
        raise CorruptFile(subject, f"{problem}: {file_bytes} bytes, and its header gives {end}; upload it again")
    return tensors


def _values(header: bytes) -> int:
    """Return how many values JSON may have at most; to count takes far less than to parse."""
    return header.count(b",") + header.count(b"[") + header.count(b"{") + 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: object, start: int, subject: str) -> TensorSpec:
    where = f"has a safetensors header whose entry {name[:200]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(subject, f"{where} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CorruptFile(subject, f"{where} has dtype {str(dtype)[:20]}; supported: {', '.join(DTYPE_BYTES)}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise CorruptFile(subject, f"{where} has a shape or offsets that are not natural numbers")
    size = DTYPE_BYTES[dtype]
    for length in shape:
        size *= length
    if offsets[1] - offsets[0] != size:
        raise CorruptFile(subject, f"{where} takes {offsets[1] - offsets[0]} bytes, and its shape needs {size}")
    return TensorSpec(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 62 for each in value)
