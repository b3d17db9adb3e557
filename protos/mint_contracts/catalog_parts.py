"""The catalog's manifests: immutable parts of JSON lines in an object store. They are the catalog; Redis is a copy.

A part that exists is complete. Of all lines about a name, the one with the largest sequence is its newest state;
part_names.py defines which sequence a line has and which parts count.
"""

import asyncio
import time
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
from mint_contracts.part_names import count_of, is_merged, sequence_of
from mint_contracts.source import Source

THREADS = 8  # per folder
WRITE_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 300.0
LEAST_LOSSES = 3  # listings that miss files, however slow they are, before the folder is given up
MOST_BYTES = 128 << 20  # of a part: more than a gateway ever writes, however long the entries are

T = TypeVar("T")


class _Line(msgspec.Struct, frozen=True):
    """One line of a merged part."""

    at: int
    entry: Entry


_encoder = msgspec.json.Encoder()
_decoder, _merged = msgspec.json.Decoder(Entry), msgspec.json.Decoder(_Line)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, MintError)  # not an entry, or one that may not be used
_log = structlog.get_logger()


class Parts:
    """The parts in one folder. Raises the object store's errors, and SourceUnavailable if a call takes too long."""

    def __init__(self, manifests: Source) -> None:
        self._manifests = manifests
        self.uri = manifests.uri
        self._store = object_store(manifests)

    async def names(self) -> list[str]:
        """List every part, the oldest first. Other files in the folder are ignored.

        A listing is not a snapshot: it may miss a run that was written meanwhile, and also the parts that the run
        replaced and that were then deleted. So list again until a listing contains everything that the one before
        found: a part that a listing misses because of a merge still existed when the listing before was made.
        """
        until, losses = 0.0, 0
        found = await self.do(self._store.names)
        while losses < LEAST_LOSSES or time.monotonic() < until:
            before, found = found, await self.do(self._store.names)
            if set(before) <= set(found):
                return [name for name in found if sequence_of(name) is not None]
            if not losses:
                until = time.monotonic() + READ_TIMEOUT_S
            losses += 1
        message = f"loses files between any two listings for {READ_TIMEOUT_S:.0f} seconds; retrying"
        raise SourceUnavailable(f"source {self._manifests.uri!r}", message)

    async def write(self, name: str, entries: Sequence[Entry]) -> None:
        """Write a part; it is durable when this returns."""
        await self._put(name, lambda: _encoder.encode_lines(entries))

    async def write_merged(self, name: str, rows: Sequence[Row]) -> None:
        """Write a piece of a run; it is durable when this returns, and may still come to exist if this raises."""
        await self.do(lambda: self._store.put(name, _encoder.encode_lines([_Line(*row) for row in rows])))

    async def delete(self, name: str) -> None:
        """Remove a part that another one has replaced."""
        await self.do(lambda: self._store.delete(name))

    async def tidy(self) -> None:
        """Remove files left behind by writers that ended midway."""
        await self.do(self._store.tidy)

    async def read(self, name: str, *, strict: bool = False) -> list[Row]:
        """Return a part's entries with their sequences.

        Unreadable lines, and parts of more than MOST_BYTES, are logged and left out, and missing lines are logged;
        with `strict` all of these raise CorruptFile.
        """
        return await self.do(lambda: self.read_now(name, strict=strict))

    def read_now(self, name: str, *, strict: bool) -> list[Row]:
        """Do the same as `read`, blocking."""
        first = sequence_of(name)
        if first is None:
            raise CorruptFile(f"{self._manifests.uri}/{name}", "is not a part of a catalog's manifests")
        merged = is_merged(name)
        try:
            content = self._store.read(name, MOST_BYTES)
        except CorruptFile as error:
            if strict:
                raise
            _log.error("catalog part cannot be read", part=name, error=str(error))
            return []
        try:
            rows, count = _rows(content, first, merged=merged), count_of(name)
        except _UNREADABLE as error:
            if strict:
                raise CorruptFile(
                    f"{self._manifests.uri}/{name}", f"has a line that is not an entry ({error})"
                ) from None
            return self._one_by_one(name, content, first, merged=merged)
        if count is not None and len(rows) != count:
            if strict:
                message = f"has {len(rows)} entries instead of the {count} that its name says"
                raise CorruptFile(f"{self._manifests.uri}/{name}", message)
            message = "catalog part does not have as many entries as its name says"
            _log.error(message, part=name, entries=len(rows), told=count)
        return rows

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
            if given_up.is_set():  # nobody will bring it into Redis now; it would turn up when Redis is next rebuilt
                self._store.delete(name)

        try:
            await self.do(put, WRITE_TIMEOUT_S)
        finally:
            given_up.set()

    async def do(self, work: Callable[[], T], limit_s: float = READ_TIMEOUT_S) -> T:
        """Run blocking `work` in one of this folder's threads. Raises SourceUnavailable after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.get_running_loop().run_in_executor(_threads(self._manifests.uri), work)
        except TimeoutError:
            message = f"did not answer for {limit_s:.0f} seconds; retrying"
            raise SourceUnavailable(f"source {self._manifests.uri!r}", message) from None


@cache
def _threads(uri: str) -> ThreadPoolExecutor:
    """Return one folder's threads: a store that hangs blocks these, and none that other folders or Redis need."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="manifests")


def _rows(content: bytes, first: int, *, merged: bool) -> list[Row]:
    if merged:
        rows = [(line.at, line.entry) for line in _merged.decode_lines(content)]
    else:
        rows = list(enumerate(_decoder.decode_lines(content), first))
    _check([entry for _, entry in rows])
    return rows


def _check(entries: Sequence[Entry]) -> None:
    """Check entries as `check` does: a line may have been damaged since it was registered and still be valid JSON."""
    plain = plainly_good([entry for entry in entries if not entry.retired])
    for entry in entries:
        if entry.retired or not plain:
            check(entry)
