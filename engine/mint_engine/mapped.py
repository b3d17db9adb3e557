"""Opening packed adapters of this machine's disk: their header is read, their run is mapped, nothing is copied."""

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch

from mint_contracts.errors import CorruptFile
from mint_engine import packed_file
from mint_engine.packed import Header, Packed, bytes_of

# A shorter run is read instead: that is as fast, and a process may have but 65,530 mappings.
MAP_FROM_BYTES = 1 << 20
REMEMBERED = 1 << 16

_Identity = tuple[int, int, int, int]  # device, inode, bytes, time of change


class Opener:
    """Opens files, and remembers which ones it has verified. Its methods may run in any thread.

    The digest of a run is checked when this process first opens the file, not on each load after that: a file of the
    disk tier is never written again, and another one under its name has another identity.
    """

    def __init__(self) -> None:
        self._verified: OrderedDict[_Identity, None] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: Path, subject: str) -> Packed:
        """The packed adapter in a file. Raises CorruptFile, and FileNotFoundError where it is gone."""
        with path.open("rb", buffering=0) as file:
            identity = _identity(os.fstat(file.fileno()))
            start = file.read(packed_file.PREFIX.size)
            rest = file.read(packed_file.rest_bytes(start, subject, identity[2]))
            header = packed_file.parse(start, rest, subject, file_bytes=identity[2])
            if header.run_bytes < MAP_FROM_BYTES:
                run = torch.empty(header.layout.elements, dtype=header.dtype)
                if file.readinto(bytes_of(run)) != header.run_bytes:
                    raise CorruptFile(subject, "was cut short while it was read")
            else:
                run = _map(path, header)
        if _identity(path.stat()) != identity:  # the mapping is made by name
            raise CorruptFile(subject, "changed while it was opened; write it once, then leave it alone")
        if not self._known(identity):
            packed_file.verify(header, run, subject)
            self._remember(identity)
        return Packed(header, run)

    def trust(self, path: Path) -> None:
        """This process has just written the file from a run whose digest it took."""
        with suppress(FileNotFoundError):
            self._remember(_identity(path.stat()))

    def _known(self, identity: _Identity) -> bool:
        with self._lock:
            if identity in self._verified:
                self._verified.move_to_end(identity)
                return True
            return False

    def _remember(self, identity: _Identity) -> None:
        with self._lock:
            self._verified[identity] = None
            while len(self._verified) > REMEMBERED:
                self._verified.popitem(last=False)


def _map(path: Path, header: Header) -> torch.Tensor:
    """The run, mapped; unlike Python's mmap, torch's keeps no file descriptor."""
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=header.file_bytes)
    every = torch.empty(0, dtype=header.dtype).set_(cast(torch.UntypedStorage, storage))
    return every[header.head_bytes // header.dtype.itemsize :]


def _identity(about: os.stat_result) -> _Identity:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
