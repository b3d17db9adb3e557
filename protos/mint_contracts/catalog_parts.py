"""The catalog's manifests: immutable parts of JSON lines in an object store. They are the catalog; Redis is a copy.

A part is named SEQUENCE-RANDOM-COUNT.jsonl. Its lines have that sequence, the next one, and so on; of all lines that
tell of a name, the one with the largest sequence is its newest state. A part that is there is whole. In a part that
was merged from others, SEQUENCE-RANDOM-COUNT.merged.jsonl, each line tells its own sequence, the first the part's.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import TypeVar

import msgspec
import structlog

from mint_contracts.entries import Entry, Row, check, plainly_good
from mint_contracts.errors import CorruptFile, MintError, SourceUnavailable
from mint_contracts.object_store import object_store
from mint_contracts.source import Source

SUFFIX, MERGED = ".jsonl", ".merged"
THREADS = 8  # of one folder
WRITE_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 300.0
_DIGITS = 16

T = TypeVar("T")


class _Line(msgspec.Struct, frozen=True):
    """One line of a merged part."""

    at: int
    entry: Entry


_encoder = msgspec.json.Encoder()
_decoder, _merged = msgspec.json.Decoder(Entry), msgspec.json.Decoder(_Line)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, MintError)  # no entry, or one that may not be used
_log = structlog.get_logger()


class Parts:
    """The parts in one folder. Raises what its store does, and SourceUnavailable where that takes too long."""

    def __init__(self, manifests: Source) -> None:
        self._manifests = manifests
        self._store = object_store(manifests)

    async def names(self) -> list[str]:
        """Every part, the oldest first. Other files in the folder are nobody's."""
        found = await self._do(self._store.names)
        return [name for name in found if sequence_of(name) is not None]

    async def write(self, name: str, entries: Sequence[Entry]) -> None:
        """Make a part; it is durable when this returns."""
        await self._put(name, lambda: _encoder.encode_lines(entries))

    async def write_merged(self, name: str, rows: Sequence[Row]) -> None:
        """Make a part of what others had; durable when this returns."""
        await self._put(name, lambda: _encoder.encode_lines([_Line(at, entry) for at, entry in rows]))

    async def delete(self, name: str) -> None:
        """Remove a part: what it says is said by another."""
        await self._do(lambda: self._store.delete(name))

    async def tidy(self) -> None:
        """Remove what was left behind by writers that ended midway."""
        await self._do(self._store.tidy)

    async def read(self, name: str, *, strict: bool = False) -> list[Row]:
        """A part's entries with their sequences.

        A line that cannot be read is told of, and left out; with `strict` it raises CorruptFile.
        """
        return await self._do(lambda: self._read(name, strict=strict))

    def _read(self, name: str, *, strict: bool) -> list[Row]:
        content = self._store.read(name)
        first = sequence_of(name)
        if first is None:
            raise CorruptFile(f"{self._manifests.uri}/{name}", "is no part of a catalog's manifests")
        merged = name.endswith(MERGED + SUFFIX)
        try:
            return _rows(content, first, merged=merged)
        except _UNREADABLE as error:
            if strict:
                raise CorruptFile(f"{self._manifests.uri}/{name}", f"has a line that is no entry ({error})") from None
            return self._one_by_one(name, content, first, merged=merged)

    def _one_by_one(self, name: str, content: bytes, first: int, *, merged: bool) -> list[Row]:
        found: list[Row] = []
        for number, line in enumerate(content.splitlines()):
            try:
                found += _rows(line, first + number, merged=merged)
            except _UNREADABLE as error:
                _log.error("catalog line cannot be read", part=name, line=number + 1, error=str(error))
        return found

    async def _put(self, name: str, content: Callable[[], bytes]) -> None:
        given_up = Event()

        def put() -> None:
            self._store.put(name, content())
            if given_up.is_set():  # nobody brings it into Redis so late: it would be found when that is read anew
                self._store.delete(name)

        try:
            await self._do(put, WRITE_TIMEOUT_S)
        finally:
            given_up.set()

    async def _do(self, work: Callable[[], T], limit_s: float = READ_TIMEOUT_S) -> T:
        """What may block, in a thread of this folder's own. Raises SourceUnavailable after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.get_running_loop().run_in_executor(_threads(self._manifests.uri), work)
        except TimeoutError:
            said = f"did not answer for {limit_s:.0f} seconds; retrying"
            raise SourceUnavailable(f"source {self._manifests.uri!r}", said) from None


@cache
def _threads(uri: str) -> ThreadPoolExecutor:
    """Those of one folder: a store that hangs takes these, and none that another, or Redis, may need."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="manifests")


def _rows(content: bytes, first: int, *, merged: bool) -> list[Row]:
    if merged:
        rows = [(line.at, line.entry) for line in _merged.decode_lines(content)]
    else:
        rows = list(enumerate(_decoder.decode_lines(content), first))
    _check([entry for _, entry in rows])
    return rows


def _check(entries: Sequence[Entry]) -> None:
    """Raises what `check` does: a line may have been spoilt since it was registered, and be JSON all the same."""
    plain = plainly_good([entry for entry in entries if not entry.retired])
    for entry in entries:
        if entry.retired or not plain:
            check(entry)


def part_name(sequence: int, count: int) -> str:
    """A name that no other part has, sorted by its sequence."""
    return f"{sequence:0{_DIGITS}d}-{secrets.token_hex(4)}-{count}{SUFFIX}"


def merged_name(sequence: int, count: int) -> str:
    """The same, of a part that is merged from others."""
    return part_name(sequence, count).removesuffix(SUFFIX) + MERGED + SUFFIX


def count_of(name: str) -> int | None:
    """How many entries a part has, by its name; None where that does not tell."""
    digits = name.removesuffix(SUFFIX).removesuffix(MERGED).rpartition("-")[2]
    return int(digits) if name.count("-") == 2 and digits.isdigit() else None


def sequence_of(name: str) -> int | None:
    """The sequence of a part's first line; None if this is not a part's name."""
    digits, dash, rest = name.removesuffix(SUFFIX).partition("-")
    if not name.endswith(SUFFIX) or len(digits) != _DIGITS or not digits.isdigit() or not dash or not rest:
        return None
    return int(digits)
