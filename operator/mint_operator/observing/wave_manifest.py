"""What a wave's manifest says: entries as a catalog takes them, JSON lines or Parquet."""

import io
from collections.abc import Iterator

import msgspec

from mint_contracts.entries import Entry, check, filled
from mint_contracts.errors import CorruptFile, InvalidRequest
from mint_contracts.names import check_asked
from mint_operator.planning.lookup import MOST_ADAPTERS

PARQUET = ".parquet"
# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_ENTRY = msgspec.json.Decoder(Entry)
MOST_UNPACKED_BYTES = 64 << 20  # of a Parquet file's columns


def entries(uri: str, data: bytes) -> list[Entry]:
    """The entries of a manifest. One without a uri is to be looked up: its name, or NAME@REVISION, stands for it.

    Raises InvalidRequest naming the line or row, SourceForbidden, or CorruptFile.
    """
    subject = f"manifest {uri}"
    found: list[Entry] = []
    for number, line in _rows(subject, data) if uri.endswith(PARQUET) else _lines(data):
        if len(found) == MOST_ADAPTERS:
            raise InvalidRequest(subject, f"has more than {MOST_ADAPTERS} adapters; make several waves")
        try:
            found.append(_checked(_ENTRY.decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(subject, f"line {number} is no entry: {error}") from None
        except InvalidRequest as error:
            raise InvalidRequest(subject, f"line {number}: {error}") from None
    if not found:
        raise InvalidRequest(subject, "has no adapters; write one entry a line, or delete the wave")
    return found


def asked(entry: Entry) -> str:
    """By what an entry without a uri is looked up."""
    return f"{entry.name}@{entry.revision}" if entry.revision else entry.name


def _checked(entry: Entry) -> Entry:
    if entry.retired:
        raise InvalidRequest(f"adapter {entry.name!r}", "is retired; leave it out of the manifest")
    if entry.uri:
        return check(entry)
    check_asked(asked(entry))
    return entry


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            yield number, line


def _rows(subject: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    from pyarrow import ArrowException, parquet  # half a second and some 60 MB that only Parquet costs

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        groups = range(file.metadata.num_row_groups)
        if sum(file.metadata.row_group(index).total_byte_size for index in groups) > MOST_UNPACKED_BYTES:
            raise InvalidRequest(subject, f"unpacks to more than {MOST_UNPACKED_BYTES} bytes; make several waves")
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist(maps_as_pydicts="strict"))
        for number, row in enumerate(rows, start=1):
            yield number, msgspec.json.encode(filled(row))
    except (ArrowException, OSError) as error:  # an OSError where its bytes are garbled
        raise CorruptFile(subject, f"is no Parquet file ({error})") from error
    except (KeyError, ValueError, TypeError, OverflowError) as error:  # where Python or JSON has no such value
        raise CorruptFile(subject, f"has values that no entry can have ({error})") from error
