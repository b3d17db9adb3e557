"""Moving bytes from a source to this machine, bounded in size."""

import hashlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from mint_contracts.errors import CorruptFile
from mint_contracts.source import Source
from mint_engine.sources.storage import Folder

CHUNK_BYTES = 1 << 20


def read_bounded(folder: Folder, name: str, limit: int) -> bytes:
    """Read all bytes of a small file. Raises CorruptFile above `limit` bytes, and Source* errors."""
    with folder.open(name) as file:
        text = read_up_to(file, limit + 1)
    if len(text) > limit:
        raise CorruptFile(folder.subject, f"has a {name} above {limit} bytes")
    return text


def read_up_to(file: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, or fewer if the file ends before."""
    parts, left = [], count
    while left and (part := file.read(min(left, CHUNK_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class Writer(Protocol):
    """Anything that bytes can be written to."""

    def write(self, part: bytes, /) -> object:
        """Write all of `part`."""
        ...


def pour(file: BinaryIO, out: Writer, limit: int, tell: Callable[[int], None]) -> int:
    """Copy until the file's end or `limit` bytes; return the number copied. `tell` gets each part's size at once."""
    copied = 0
    while copied < limit and (part := file.read(min(CHUNK_BYTES, limit - copied))):
        out.write(part)
        copied += len(part)
        tell(len(part))
    return copied


def folder_name(source: Source) -> str:
    """Return the name of a source's folder in a cache."""
    return hashlib.sha256(f"{source.uri}\0{source.revision}".encode()).hexdigest()[:32]
