"""The process that unpacks one Parquet file of a stranger's for `parquet_process.py`, and ends."""

import os
import resource
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import msgspec

from mint_contracts.errors import CapacityExceeded, CorruptFile
from mint_contracts.parquet_process import Part
from mint_contracts.parquet_rows import MOST_ROW_BYTES, rows, unheld

_PART_BYTES = 64 << 10


def main() -> None:
    """Write the rows to the connection, as the arguments say: its descriptor, the file's, most_bytes, most memory."""
    end, number, most_bytes, most_memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (most_memory, most_memory))
    connection = Connection(end, readable=False)
    with os.fdopen(number, "rb") as file:
        for part in _parts(file, most_bytes):
            connection.send_bytes(msgspec.msgpack.encode(part))


def _parts(file: BinaryIO, most_bytes: int) -> Iterator[Part]:
    packed: list[msgspec.Raw] = []
    try:
        size = 0
        for row in rows("", file, most_bytes):
            packed.append(_packed(row))
            size += len(packed[-1])
            if size >= _PART_BYTES:
                yield Part(tuple(packed))
                packed, size = [], 0
        yield Part(tuple(packed))
        yield Part(ended=True)
    except (CapacityExceeded, CorruptFile) as error:
        yield Part(tuple(packed))
        yield Part(ended=True, too_large=isinstance(error, CapacityExceeded), refusal=error.message)


def _packed(row: dict[str, Any]) -> msgspec.Raw:
    """Return the row in MessagePack: unlike JSON, it tells texts and bytes apart. Names of columns count as well."""
    try:
        packed = msgspec.msgpack.encode(msgspec.to_builtins(row, builtin_types=(bytes,)))
    except (ValueError, TypeError, OverflowError) as error:
        raise unheld("", error) from error
    if len(packed) > 2 * MOST_ROW_BYTES:
        raise CapacityExceeded("", f"has a row of more than {MOST_ROW_BYTES >> 20} MiB; leave it out")
    return msgspec.Raw(packed)


if __name__ == "__main__":
    main()
