"""Parquet files of strangers: the same rows as ever, and one error for whatever would end or fill their reader."""

import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mint_contracts.errors import CapacityExceeded, CorruptFile
from mint_contracts.parquet_process import bounded_rows, most_memory

MOST_BYTES = 4 << 20
PATIENCE_S = 60.0


def written(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, compression="zstd", use_dictionary=False, write_statistics=False)
    return file.getvalue()


def read(data: bytes, most_s: float = PATIENCE_S) -> Iterator[dict[str, Any]]:
    return bounded_rows("a file", data, MOST_BYTES, most_s)


def varint(number: int, length: int = 0) -> bytes:
    """Return a zigzag number as the footer has it, with bytes that add nothing until it is as long as is asked."""
    groups: list[int] = []
    number <<= 1
    while number or len(groups) < max(length, 1):
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups[:-1], groups[-1] & 127])


def test_rows_are_those_that_were_written() -> None:
    names = [f"acme/{n} {'x' * 50}" for n in range(3000)]
    blobs = [bytes([n % 256]) for n in range(3000)]
    assert list(read(written(name=names, blob=blobs))) == [
        {"name": name, "blob": blob} for name, blob in zip(names, blobs, strict=True)
    ]


def test_a_file_whose_footer_says_less_than_it_unpacks_to_is_refused() -> None:
    """A reader that believed it would take gigabytes."""
    data = written(name=["x" * (2 * most_memory(MOST_BYTES))])
    size = parquet.read_metadata(io.BytesIO(data)).row_group(0).column(0).total_uncompressed_size
    true = varint(size)
    lying = data.replace(true, varint(1000, len(true)))
    assert parquet.read_metadata(io.BytesIO(lying)).row_group(0).column(0).total_uncompressed_size == 1000
    assert len(lying) == len(data) < 1 << 20
    with pytest.raises(CapacityExceeded, match="does not fit in the memory"):
        list(read(lying))


def test_a_file_whose_values_end_their_reader_is_refused() -> None:
    """A footer may have any type's length: two gigabytes for each value."""
    column = pa.array([b"0123456789abcdef"] * 3, pa.binary(16))
    data = written(name=column)
    lying = data.replace(b"\x15\x0e\x15\x20", b"\x15\x0e\x15" + varint(2**31 - 1))
    grown = len(lying) - len(data)
    assert grown
    length = struct.pack("<I", struct.unpack("<I", data[-8:-4])[0] + grown)
    with pytest.raises((CorruptFile, CapacityExceeded)):
        list(read(lying[:-8] + length + lying[-4:]))


def test_a_file_that_takes_too_long_is_refused() -> None:
    with pytest.raises(CapacityExceeded, match="takes more than 0 s to unpack"):
        list(read(written(name=["x"]), most_s=0))


def test_rows_that_nobody_takes_any_more_leave_no_process() -> None:
    before = os.listdir("/proc/self/fd")
    rows = read(written(name=[str(n) for n in range(100_000)]))
    assert next(rows) == {"name": "0"}
    del rows  # waits for the process's end, which would never come by itself: nobody reads what it writes
    assert os.listdir("/proc/self/fd") == before
