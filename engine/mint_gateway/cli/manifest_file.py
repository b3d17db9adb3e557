"""Turning a file of entries into registration messages: JSON lines as they are, or Parquet rows as lines."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.errors import InvalidRequest, SourceForbidden, SourceNotFound, SourceUnavailable
from mint_contracts.parquet_rows import count, entry_lines, rows

MESSAGE_BYTES = 1 << 20  # each takes a round trip, and on a slow link has to arrive within a minute
LONGEST_LINE = 1 << 20  # about ten times the largest entry; such a message is still well below the gateway's limit
PARQUET = ".parquet"


def size_of(file: Path) -> int:
    """Return the bytes of a file of JSON lines, or the rows of a Parquet file. Raises SourceNotFound, CorruptFile."""
    with _opened(file) as opened:
        return count(_subject(file), opened) if file.suffix == PARQUET else file.stat().st_size


async def requests(file: Path, base: str, progress: Callable[[int], None]) -> AsyncIterator[RegisterRequest]:
    """Yield the messages, read in a thread. `progress` is called with how much of `size_of` has been sent.

    Raises InvalidRequest, with the line's or row's number, if one is too long for an entry.
    """
    pieces = _rows(file) if file.suffix == PARQUET else _lines(file)
    sent = False
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        lines, read = piece
        yield RegisterRequest(base_model=base, lines=lines)
        progress(read)
        sent = True
    if not sent:
        yield RegisterRequest(base_model=base)


def _lines(file: Path) -> Iterator[tuple[bytes, int]]:
    read, before = 0, 1
    try:
        with _opened(file) as opened:
            while block := opened.read(MESSAGE_BYTES):
                number = before + block.count(b"\n")
                rest = opened.readline(LONGEST_LINE)
                if len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                    raise _too_long(file, "line", number)
                block += rest
                read, before = read + len(block), number + rest.count(b"\n")
                yield block, read
    except OSError as error:
        raise SourceUnavailable(_subject(file), f"could not be read ({error.strerror})") from error


def _rows(file: Path) -> Iterator[tuple[bytes, int]]:
    block, read = bytearray(), 0
    with _opened(file) as opened:
        for line in entry_lines(_subject(file), rows(_subject(file), opened)):
            read += 1
            if len(line) >= LONGEST_LINE:
                raise _too_long(file, "row", read)
            block += line + b"\n"
            if len(block) >= MESSAGE_BYTES:
                yield bytes(block), read
                block.clear()
    if block:
        yield bytes(block), read


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise SourceNotFound(_subject(file), "does not exist") from None
    except PermissionError:
        raise SourceForbidden(_subject(file), "may not be read") from None
    except IsADirectoryError:
        raise InvalidRequest(_subject(file), "is a folder; name a file of JSON lines or Parquet") from None
    except OSError as error:
        raise InvalidRequest(_subject(file), f"could not be opened ({error.strerror})") from None


def _too_long(file: Path, what: str, number: int) -> InvalidRequest:
    message = f"{what} {number} has {LONGEST_LINE >> 20} MiB or more, which no entry has; write one entry a line"
    return InvalidRequest(_subject(file), message)


def _subject(file: Path) -> str:
    return f"file {str(file)!r}"
