"""Tensors in a base's files, read on demand, completely or in part."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from mint_contracts.errors import CorruptFile, UnsupportedBase
from mint_contracts.records import LOADING
from mint_engine.adapters.mapped import LOST, map_file
from mint_engine.residency.remapping import populate
from mint_engine.sources.load_progress import LoadProgress

_LENGTH = struct.Struct("<Q")  # of the header that follows it
_ABOUT = "__metadata__"
# safetensors' names of number types.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Stored(Protocol):
    """A tensor that has not been read yet."""

    def get_shape(self) -> Sequence[int]:
        """Its sizes, from the file's header."""
        ...

    def get_dtype(self) -> str:
        """Its type as safetensors names it, e.g. BF16 or F8_E4M3."""
        ...

    def __getitem__(self, part: Any) -> torch.Tensor:
        """Read all of it with `...`, or a part with a slice for each of its first dimensions."""
        ...


def open_tensors(files: Iterable[str]) -> dict[str, Stored]:
    """Return every tensor of safetensors files by name; the headers must have been checked.

    Reading a tensor raises CorruptFile if its disk has lost a block, UnsupportedBase if its type is not supported.
    """
    found: dict[str, Stored] = {}
    for file in files:
        with _readable(file), Path(file).open("rb") as opened:
            (length,) = _LENGTH.unpack(opened.read(_LENGTH.size))
            header = json.loads(opened.read(length))
        memory, first = map_file(file, Path(file).stat().st_size), _LENGTH.size + length
        for key, entry in header.items():
            if key != _ABOUT:
                start, stop = (first + each for each in entry["data_offsets"])
                found[key] = _Mapped(file, memory, slice(start, stop), entry["dtype"], tuple(entry["shape"]))
    return found


@dataclass(frozen=True)
class _Mapped:
    """A tensor in its mapped file.

    It is copied when read: what is written to the file, or lost from it, must not change a resident base. It does not
    use safetensors' own slices, which touch its first byte: an unreadable block would kill the process.
    """

    file: str
    memory: torch.UntypedStorage
    bytes: slice
    kind: str
    shape: tuple[int, ...]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.kind

    def __getitem__(self, part: Any) -> torch.Tensor:
        if self.kind not in _DTYPES:
            raise UnsupportedBase(f"base file {self.file}", f"has tensors of {self.kind}, which is not supported")
        own: Any = self.memory[self.bytes]  # slices of storages are not typed
        found = torch.empty(0, dtype=_DTYPES[self.kind]).set_(own).view(self.shape)[part]
        if found.numel():
            last = sum((size - 1) * step for size, step in zip(found.shape, found.stride(), strict=True))
            with _readable(self.file):
                populate(found.data_ptr(), (last + 1) * found.itemsize)
        return found.clone()


@contextmanager
def _readable(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        message = f"cannot be read from its disk ({error.strerror}); get its files again"
        raise CorruptFile(f"base file {file}", message) from error


class _Counted:
    """A tensor that reports to `progress` how many bytes each read returned."""

    def __init__(self, tensor: Stored, progress: LoadProgress) -> None:
        self._tensor, self._progress = tensor, progress

    def get_shape(self) -> Sequence[int]:
        return self._tensor.get_shape()

    def get_dtype(self) -> str:
        return self._tensor.get_dtype()

    def __getitem__(self, part: Any) -> torch.Tensor:
        found = self._tensor[part]
        self._progress.moved(found.nbytes)
        return found


def counted(tensors: Mapping[str, Stored], progress: LoadProgress) -> dict[str, Stored]:
    """Return these tensors, counted by `progress`, to which it reports that reading begins."""
    sizes = [
        prod(each.get_shape()) * _DTYPES.get(each.get_dtype(), torch.uint8).itemsize for each in tensors.values()
    ]
    progress.begin(LOADING, sum(sizes))
    return {name: _Counted(tensor, progress) for name, tensor in tensors.items()}
