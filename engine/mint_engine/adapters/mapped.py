"""Opens packed adapters on this machine's disk: reads their header and maps their run without copying it."""

import errno
import os
import re
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch

from mint_contracts.errors import CorruptFile
from mint_engine.adapters import packed_file
from mint_engine.adapters.file_identity import Identity, KnownFile, identity_of
from mint_engine.adapters.packed import Header, Packed, bytes_of
from mint_engine.adapters.recent import Recent
from mint_engine.residency.remapping import populate

# A shorter run is read instead of mapped: that is as fast, and a process may have only 65,530 mappings.
MAP_FROM_BYTES = 1 << 20
VERIFIED = 1 << 16
# The errors of reading a file if the disk has lost it or a block of it; EFAULT is that of a mapped block.
LOST = frozenset({errno.ENOENT, errno.EIO, errno.EFAULT})
_ERRNO = re.compile(r"\((\d+)\)$", re.MULTILINE)
HEADERS = 1 << 10  # cached headers of about 20 KB: 700 scalings and a config
LONG_BYTES = 128 << 10  # longer headers are not cached: a config may be a megabyte, and no tier accounts for them


class Opener:
    """Opens files, and remembers which ones it has verified. Its methods may run in any thread.

    The digest of a run is checked only when this process first opens the file: a file of the disk tier is never
    written again, and another file under its name has another identity.
    """

    def __init__(self) -> None:
        self._verified: Recent[Identity, bool] = Recent(VERIFIED)
        self._headers: Recent[Identity, Header] = Recent(HEADERS)

    def open(self, path: Path, subject: str) -> Packed:
        """Return the packed adapter in a file. Raises CorruptFile or OSError: FileNotFoundError if the file is gone,
        EIO or EFAULT if a block of it cannot be read.

        Packed adapters from one recently opened file share their header.
        """
        with path.open("rb", buffering=0) as file:
            identity = identity_of(os.fstat(file.fileno()))
            header = self._headers.get(identity)
            if header is None:
                header = _read_header(file, identity.nbytes, subject)
                if header.head_bytes <= LONG_BYTES:
                    self._headers.put(identity, header)
            short = header.run_bytes < MAP_FROM_BYTES
            run = _read(file, header, subject) if short else _map(path, header)
        if identity_of(path.stat()) != identity:  # the mapping is made by name
            raise CorruptFile(subject, "changed while it was opened; packed files must not change once written")
        if not self._verified.get(identity):
            if not short:
                populate(run.untyped_storage().data_ptr(), header.file_bytes)
            packed_file.verify(header, run, subject)
            self._verified.put(identity, True)
        return Packed(header, run, None if short else KnownFile(path, identity))

    def has_verified(self, path: Path) -> bool:
        """Return whether `open` would not have to read all of a file that is there."""
        try:
            return self._verified.get(identity_of(path.stat())) is not None
        except OSError:
            return False

    def trust(self, path: Path) -> None:
        """Mark a file as verified, which this process has just written from a run whose digest it computed."""
        with suppress(FileNotFoundError):
            self._verified.put(identity_of(path.stat()), True)


def _read_header(file: FileIO, file_bytes: int, subject: str) -> Header:
    start = file.read(packed_file.PREFIX.size)
    rest = file.read(packed_file.rest_bytes(start, subject, file_bytes))
    return packed_file.parse(start, rest, subject, file_bytes=file_bytes)


def _read(file: FileIO, header: Header, subject: str) -> torch.Tensor:
    run = torch.empty(header.layout.elements, dtype=header.dtype)
    file.seek(header.head_bytes)
    if file.readinto(bytes_of(run)) != header.run_bytes:
        raise CorruptFile(subject, "was cut short while it was read")
    return run


def _map(path: Path, header: Header) -> torch.Tensor:
    every = torch.empty(0, dtype=header.dtype).set_(cast(Any, map_file(str(path), header.file_bytes)))
    return every[header.head_bytes // header.dtype.itemsize :]


def map_file(path: str, nbytes: int) -> torch.UntypedStorage:
    """Map a file; unlike Python's mmap, torch's keeps no file descriptor. Raises OSError."""
    try:
        mapped = torch.UntypedStorage.from_file(path, shared=False, nbytes=nbytes)
    except RuntimeError as error:  # torch's message ends with the error number: "(12)"
        number = _ERRNO.search(str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), path) from error
    return cast(torch.UntypedStorage, mapped)
