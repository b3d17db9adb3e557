"""Rows of a Parquet file, unpacked a few at a time: a file of a few hundred bytes may hold any number of long texts.

Texts stay in the file's dictionaries until a row is taken, so that its memory is known before it is used. That holds
for files whose footers are true: those of strangers are read by `parquet_process.py`. Blocking.
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

from mint_contracts.errors import CapacityExceeded, CorruptFile

MOST_ROW_BYTES = 16 << 20  # of rows converted to Python objects at once, and of one row
_ROWS = 1024  # read at once in columnar form
_VALUE_BYTES = 8  # the least that a column or a list takes for a value


def rows(subject: str, file: BinaryIO, most_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict by column name; maps become dicts.

    Raises CorruptFile, or CapacityExceeded for a row of more than MOST_ROW_BYTES and for columns that take more than
    `most_bytes`.
    """
    from pyarrow import ArrowException, parquet  # takes half a second and about 60 MB: imported only for Parquet

    try:
        metadata = parquet.read_metadata(file)
        _check_size(subject, metadata, most_bytes)
        kept, deltas = _texts(subject, metadata)
        opened = parquet.ParquetFile(file, metadata=metadata, read_dictionary=kept)
        for group in range(metadata.num_row_groups):  # each has its own dictionary
            for batch in opened.iter_batches(1 if deltas else _ROWS, row_groups=[group], use_threads=False):
                for piece in _pieces(subject, batch):
                    yield from piece.to_pylist(maps_as_pydicts="strict")
    except MemoryError as error:
        raise CapacityExceeded(subject, "does not fit in the memory that there is to unpack it; split it") from error
    except (ArrowException, OSError) as error:  # an OSError for garbled bytes
        raise _unread(subject, error) from error
    except (KeyError, ValueError, TypeError, OverflowError) as error:  # a value that Python cannot represent
        raise unheld(subject, error) from error


def count(subject: str, file: BinaryIO) -> int:
    """Return the number of rows in the file's metadata. Raises CorruptFile."""
    from pyarrow import ArrowException, parquet

    try:
        return int(parquet.read_metadata(file).num_rows)
    except (ArrowException, OSError) as error:
        raise _unread(subject, error) from error


def entry_lines(subject: str, found: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the rows of a table of entries as lines of JSON, without what is null in them. Raises CorruptFile."""
    for row in found:
        try:
            line = msgspec.json.encode(_filled(row))
        except (ValueError, TypeError, OverflowError) as error:  # a value that JSON cannot represent
            raise unheld(subject, error) from error
        yield line


def _filled(value: Any) -> Any:
    """Return a value without the fields that are null in it: a struct has every field that any row has."""
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


def _chunks(metadata: Any) -> Iterator[Any]:
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        yield from map(group.column, range(group.num_columns))


def _check_size(subject: str, metadata: Any, most_bytes: int | None) -> None:
    takes = sum(max(each.total_uncompressed_size, _VALUE_BYTES * each.num_values) for each in _chunks(metadata))
    if most_bytes is not None and takes > most_bytes:
        raise CapacityExceeded(subject, f"unpacks to more than {most_bytes >> 20} MiB; split it")


def _texts(subject: str, metadata: Any) -> tuple[list[str], set[str]]:
    """Return the text columns that can be kept in dictionaries, and the columns encoded as deltas.

    A delta encodes what a text shares with the one before: a short file can hold many long texts, in no dictionary.
    """
    columns = map(metadata.schema.column, range(len(metadata.schema)))
    texts = [each for each in columns if each.physical_type == "BYTE_ARRAY"]
    deltas = {
        chunk.path_in_schema
        for chunk in _chunks(metadata)
        if any(name.endswith("_BYTE_ARRAY") for name in chunk.encodings)
    }
    if any(each.path in deltas and each.max_repetition_level for each in texts):
        raise CapacityExceeded(subject, "has lists of texts told by deltas, which have no bound; encode them plainly")
    return [each.path for each in texts if each.path not in deltas], deltas


def _unread(subject: str, error: Exception) -> CorruptFile:
    return CorruptFile(subject, f"is no Parquet file ({str(error)[:300]})")


def unheld(subject: str, error: Exception) -> CorruptFile:
    """Return the error for a value that Python or JSON cannot represent."""
    return CorruptFile(subject, f"has values that no line of JSON can have ({str(error)[:300]})")


def _pieces(subject: str, batch: Any) -> Iterator[Any]:
    """Yield the rows in pieces of at most MOST_ROW_BYTES."""
    if sum(map(_weight, batch.columns)) <= MOST_ROW_BYTES:
        yield batch
    elif batch.num_rows == 1:
        raise CapacityExceeded(subject, f"has a row of more than {MOST_ROW_BYTES >> 20} MiB; leave it out")
    else:
        half = batch.num_rows // 2
        yield from _pieces(subject, batch.slice(0, half))
        yield from _pieces(subject, batch.slice(half))


def _weight(array: Any) -> int:
    """Return roughly how many bytes an array takes as Python objects: its texts, plus a fixed size for each value."""
    from pyarrow import ListArray, compute, types

    kind, own = array.type, _VALUE_BYTES * len(array)
    if types.is_struct(kind):
        return own + sum(map(_weight, array.flatten()))
    if types.is_map(kind):  # a map array has no flatten()
        return own + sum(_weight(ListArray.from_arrays(array.offsets, each)) for each in (array.keys, array.items))
    if types.is_nested(kind):
        return own + _weight(array.flatten())
    if types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return own + int(compute.sum(lengths).as_py() or 0)
    return own + int(array.nbytes)
