"""A file of entries as the messages of a registration: JSON lines as they stand, or Parquet's rows as lines."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.entries import filled
from mint_contracts.errors import CorruptFile, InvalidRequest, SourceForbidden, SourceNotFound

MESSAGE_BYTES = 256 << 10
ROWS = 2000
PARQUET = ".parquet"


def size_of(file: Path) -> int:
    """Bytes of a file of JSON lines, or rows of a Parquet file. Raises SourceNotFound or CorruptFile."""
    if file.suffix == PARQUET:
        return int(_parquet(file).metadata.num_rows)
    with _opened(file):
        return file.stat().st_size


async def requests(file: Path, base: str, told: Callable[[int], None]) -> AsyncIterator[RegisterRequest]:
    """The messages; `told` hears how much of `size_of` has been sent. Read in a thread, a message ahead at most."""
    pieces = _rows(file) if file.suffix == PARQUET else _lines(file)
    sent = False
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        lines, read = piece
        yield RegisterRequest(base_model=base, lines=lines)
        told(read)
        sent = True
    if not sent:
        yield RegisterRequest(base_model=base)


def _lines(file: Path) -> Iterator[tuple[bytes, int]]:
    read = 0
    with _opened(file) as opened:
        while block := opened.read(MESSAGE_BYTES):
            block += opened.readline()
            read += len(block)
            yield block, read


def _rows(file: Path) -> Iterator[tuple[bytes, int]]:
    read = 0
    for batch in _parquet(file).iter_batches(batch_size=ROWS):
        rows = batch.to_pylist(maps_as_pydicts="strict")
        read += len(rows)
        yield b"".join(msgspec.json.encode(filled(row)) + b"\n" for row in rows), read


def _parquet(file: Path) -> Any:
    from pyarrow import ArrowException, parquet  # half a second that only Parquet costs

    with _opened(file):
        try:
            return parquet.ParquetFile(file)
        except ArrowException as error:
            raise CorruptFile(f"file {str(file)!r}", f"is no Parquet file ({error})") from error


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise SourceNotFound(f"file {str(file)!r}", "does not exist") from None
    except PermissionError:
        raise SourceForbidden(f"file {str(file)!r}", "may not be read") from None
    except IsADirectoryError:
        raise InvalidRequest(f"file {str(file)!r}", "is a folder; name a file of JSON lines or Parquet") from None
