"""Parses a wave's manifest: entries in the catalog's format, as JSON lines or Parquet."""

import msgspec

from mint_contracts.entries import Entry, check
from mint_contracts.errors import InvalidRequest
from mint_contracts.names import check_asked
from mint_operator.observing.manifest_file import numbered
from mint_operator.planning.lookup import MOST_ADAPTERS

# built on import: msgspec 0.22 crashes if several threads decode a type for the first time at once
_ENTRY = msgspec.json.Decoder(Entry)


def entries(uri: str, data: bytes) -> list[Entry]:
    """Parse a manifest's entries. An entry without a uri is to be looked up by its name, or by NAME@REVISION.

    Raises InvalidRequest naming the line or row, SourceForbidden, CorruptFile, or CapacityExceeded.
    """
    subject = f"manifest {uri}"
    found: list[Entry] = []
    for number, line in numbered(uri, data, MOST_ADAPTERS, "adapters", "entry"):
        try:
            found.append(_checked(_ENTRY.decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(subject, f"line {number} is not a valid entry: {error}") from None
        except InvalidRequest as error:
            raise InvalidRequest(subject, f"line {number}: {error}") from None
    return found


def asked(entry: Entry) -> str:
    """Return the name, or NAME@REVISION, by which an entry without a uri is looked up."""
    return f"{entry.name}@{entry.revision}" if entry.revision else entry.name


def _checked(entry: Entry) -> Entry:
    if entry.retired:
        raise InvalidRequest(f"adapter {entry.name!r}", "is retired; remove it from the manifest")
    if entry.uri:
        return check(entry)
    check_asked(asked(entry))
    return entry
