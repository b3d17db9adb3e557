"""Entries of a wave's manifest mean the same as lines and as Parquet; bad ones are refused."""

from collections.abc import Callable

import msgspec
import pyarrow as pa
import pytest

from mint_contracts.errors import CapacityExceeded, CorruptFile, InvalidRequest
from mint_operator.observing.wave_manifest import entries
from mint_operator.planning.lookup import MOST_ADAPTERS
from tests.operator.catalogs import columns, entry, table, twice


def test_parquet_says_the_same_as_lines() -> None:
    given = [entry("a/1", team="x"), entry("a/2", size="y")]
    assert entries("s3://b/w.parquet", table(*given)) == given
    assert entries("s3://b/w.jsonl", msgspec.json.Encoder().encode_lines(given)) == given


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (lambda: b"", InvalidRequest, "has no adapters"),
        (lambda: b'{"name": "a", "uri": "s3://b/a"}\n{"nom": "b"}', InvalidRequest, "line 2 is not a valid entry"),
        (lambda: b'\n{"name": "../a", "uri": "s3://b/a"}', InvalidRequest, "line 2: adapter"),
        (lambda: b'{"name": "a", "retired": true}', InvalidRequest, "remove it"),
        (lambda: b'{"name": "caf\xe9", "uri": "s3://b/a"}', InvalidRequest, "line 1 is not a valid entry"),
        (lambda: b'{"name": "a"}\n' * (MOST_ADAPTERS + 1), InvalidRequest, "split it over several waves"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_naming_the_line(
    make: Callable[[], bytes], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        entries("s3://b/w.jsonl", make())


def test_invalid_parquet_is_refused() -> None:
    with pytest.raises(CorruptFile, match="is no Parquet file"):
        entries("s3://b/w.parquet", b"PAR1 and nothing else")


def garbled() -> bytes:
    data = bytearray(table(*[entry(f"a/{n}") for n in range(100)]))
    data[4:40] = b"\xff" * 36  # the first page's header
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (twice, "duplicate keys"),
        (lambda: columns(made=pa.array([1], pa.timestamp("ns"))), "values that no line of JSON can have"),
        (lambda: columns(made=pa.array([2**62], pa.timestamp("us"))), "values that no line of JSON can have"),
        (lambda: columns(revision=pa.array([b"\xff"]).view(pa.string())), "codec can't decode"),
        (garbled, "is no Parquet file"),
    ],
    ids=["a key twice", "nanoseconds", "the year 146000", "no text", "garbled"],
)
def test_parquet_that_python_cannot_hold_is_refused(make: Callable[[], bytes], why: str) -> None:
    with pytest.raises(CorruptFile, match=why):
        entries("s3://b/w.parquet", make())


def test_parquet_that_unpacks_to_more_than_is_allowed_is_refused_before_it_does() -> None:
    most = columns(note=pa.array(["x" * (9 << 20)]))
    assert len(most) < 1 << 20
    with pytest.raises(CapacityExceeded, match="unpacks to more than 8 MiB"):
        entries("s3://b/w.parquet", most)
