"""A reference catalog in plain dictionaries, and a Python version of how catalog.lua stores a batch."""

import struct
from collections.abc import Iterable, Mapping

from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry, Row
from mint_contracts.packed_entries import INLINE, Found, batch


async def make_complete(writer: CatalogWriter, base: str, sequence: int = 0) -> None:
    """Make Redis hold a complete copy of manifests that end at `sequence`."""
    await writer.complete(base, await writer.begin(base, "s3://catalog/smol"), sequence)


def packed(entry: Entry, sequence: int, *, numbered: bool = True) -> Found:
    """Return the stored value of one entry, with its root and labels numbered 1, or written out."""
    data = batch([(sequence, entry)])
    (root,), at = _texts(data, 0)
    (labels,), at = _texts(data, at)
    length = data[at]
    head = data[at + 1 + length : at + 15 + length]
    rest = data[at + 21 + length :]
    assert data[at + 1 : at + 1 + length] == entry.name.encode()
    if numbered:
        return Found(head + struct.pack(">HH", 1, 1) + rest, root.decode(), labels)
    inline = b"".join(struct.pack(">H", len(text)) + text for text in (root, labels))
    return Found(head + struct.pack(">HH", INLINE, INLINE) + inline + rest, root.decode(), labels)


def newest(rows: Iterable[Row]) -> dict[str, Entry]:
    """Return each name's entry with the largest sequence, leaving out names that this entry retires."""
    states: dict[str, Row] = {}
    for row in rows:
        known = states.get(row[1].name)
        if known is None or row[0] > known[0]:
            states[row[1].name] = row
    return {name: entry for name, (_, entry) in states.items() if not entry.retired}


def chosen(states: Mapping[str, Entry], prefix: str, labels: Mapping[str, str]) -> list[Entry]:
    """Return the entries that a listing should give, sorted by name."""
    return [
        entry
        for name, entry in sorted(states.items())
        if name.startswith(prefix) and labels.items() <= entry.labels.items()
    ]


def _texts(data: bytes, at: int) -> tuple[list[bytes], int]:
    (count,) = struct.unpack_from(">H", data, at)
    at, found = at + 2, []
    for _ in range(count):
        (length,) = struct.unpack_from(">H", data, at)
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found, at


def entry(name: str, revision: str = "", **labels: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision or 'only'}", revision, labels, 8, 1000)
