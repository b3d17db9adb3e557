"""The catalog's manifests: immutable parts of JSON lines in an object store. They are the catalog; Redis is a copy.

A part is named SEQUENCE-RANDOM.jsonl. Its lines have that sequence, the next one, and so on; of all lines that tell
of a name, the one with the largest sequence is its newest state. A part that is there is whole.
"""

import asyncio
import secrets
from collections.abc import Sequence

import msgspec
import structlog

from mint_contracts.entries import Entry
from mint_contracts.errors import CorruptFile
from mint_contracts.object_store import object_store
from mint_contracts.source import Source

SUFFIX = ".jsonl"
_DIGITS = 16

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)
_log = structlog.get_logger()


class Parts:
    """The parts in one folder."""

    def __init__(self, manifests: Source) -> None:
        self._manifests = manifests
        self._store = object_store(manifests)

    async def names(self) -> list[str]:
        """Every part, the oldest first. Other files in the folder are nobody's."""
        found = await asyncio.to_thread(self._store.names)
        return [name for name in found if sequence_of(name) is not None]

    async def write(self, name: str, entries: Sequence[Entry]) -> None:
        """Make a part; it is durable when this returns."""
        content = _encoder.encode_lines(entries)
        await asyncio.to_thread(self._store.put, name, content)

    async def read(self, name: str) -> list[tuple[int, Entry]]:
        """A part's entries with their sequences. A line that cannot be read is told of, and left out."""
        content = await asyncio.to_thread(self._store.read, name)
        first = sequence_of(name)
        if first is None:
            raise CorruptFile(f"{self._manifests.uri}/{name}", "is no part of a catalog's manifests")
        try:
            entries = _decoder.decode_lines(content)
        except msgspec.MsgspecError:
            return self._one_by_one(name, content, first)
        return list(enumerate(entries, first))

    def _one_by_one(self, name: str, content: bytes, first: int) -> list[tuple[int, Entry]]:
        found: list[tuple[int, Entry]] = []
        for number, line in enumerate(content.splitlines()):
            try:
                found.append((first + number, _decoder.decode(line)))
            except msgspec.MsgspecError as error:
                _log.error("catalog line cannot be read", part=name, line=number + 1, error=str(error))
        return found


def part_name(sequence: int) -> str:
    """A name that no other part has, sorted by its sequence."""
    return f"{sequence:0{_DIGITS}d}-{secrets.token_hex(4)}{SUFFIX}"


def sequence_of(name: str) -> int | None:
    """The sequence of a part's first line; None if this is not a part's name."""
    digits, dash, rest = name.removesuffix(SUFFIX).partition("-")
    if not name.endswith(SUFFIX) or len(digits) != _DIGITS or not digits.isdigit() or not dash or not rest:
        return None
    return int(digits)
