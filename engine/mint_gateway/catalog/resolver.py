"""Resolving names to catalog entries for every request, with a cache that drops entries when they change."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.catalog_reader import EVERYTHING, CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.errors import MapUnavailable
from mint_contracts.names import split_asked

REMEMBERED = 65_536  # about 50 MB
FRESH_S = 2.0  # cached entries are used no longer than this, since news can be lost, unless Redis is away
NEWS_WAIT_S = 1.0

Key = tuple[str, str]  # the base, and the name as requested

_log = structlog.get_logger()


class Resolver:
    """Finds the entries of requested names. `away` returns whether Redis does not answer; `clock` is monotonic."""

    def __init__(
        self,
        reader: CatalogReader,
        *,
        away: Callable[[], bool] = lambda: False,
        remembered: int = REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader, self._away = reader, away
        self._remembered, self._clock = remembered, clock
        self._known: OrderedDict[Key, tuple[Entry | None, float]] = OrderedDict()
        self._pins: dict[Key, set[str]] = {}  # each name's cached NAME@REVISION keys
        self._asking: dict[Key, asyncio.Task[Entry | None]] = {}

    async def find(self, base: str, asked: str) -> Entry | None:
        """Return the entry of NAME or NAME@REVISION, or None if the catalog does not have it. Raises MapUnavailable.

        A retired name has an entry that says so. While Redis is away, cached entries stay valid, so that requests do
        not wait for a Redis that does not answer.
        """
        known = self._known.get((base, asked))
        if known is not None and (self._away() or self._clock() - known[1] < FRESH_S):
            self._known.move_to_end((base, asked))
            return known[0]
        try:
            return await asyncio.shield(self._ask((base, asked)))
        except MapUnavailable:
            if known is None:
                raise
            return known[0]

    def forget(self, base: str, names: Iterable[str]) -> None:
        """Drop these names and their revisions from the cache, because they have changed."""
        changed = set(names)
        if EVERYTHING in changed:
            self._clear()
            self._asking.clear()
            return
        for name in changed:
            for asked in (name, *self._pins.pop((base, name), ())):
                self._known.pop((base, asked), None)
        for key in [key for key in self._asking if key[0] == base and _bare(key)[1] in changed]:
            del self._asking[key]

    async def follow(self, base: str) -> None:
        """Drop what changes in a base's catalog from the cache, until cancelled."""
        failures = 0
        while True:
            try:
                async with self._reader.news(base) as wait:
                    self._clear()  # earlier news may have been missed
                    failures = 0
                    while True:
                        self.forget(base, await wait(NEWS_WAIT_S))
            except (MapUnavailable, ResponseError) as error:
                failures += 1
                _log.warning("catalog's changes cannot be followed", base_model=base, error=str(error))
            await asyncio.sleep(delay_s(failures, first_s=0.1, cap_s=2.0))

    def _ask(self, key: Key) -> "asyncio.Task[Entry | None]":
        """Ask Redis once for all who wait for the same answer."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._find(key))
        return asking

    async def _find(self, key: Key) -> Entry | None:
        try:
            entry = await self._reader.find(key[0], *split_asked(key[1]))
        finally:
            heard_of = self._asking.get(key) is not asyncio.current_task()  # the name has changed since the question
            if not heard_of:
                del self._asking[key]
        if not heard_of:
            self._remember(key, entry)
        return entry

    def _remember(self, key: Key, entry: Entry | None) -> None:
        self._known[key] = entry, self._clock()
        self._known.move_to_end(key)
        if "@" in key[1]:
            self._pins.setdefault(_bare(key), set()).add(key[1])
        while len(self._known) > self._remembered:
            oldest, _ = self._known.popitem(last=False)
            pins = self._pins.get(_bare(oldest), set())
            pins.discard(oldest[1])
            if not pins:
                self._pins.pop(_bare(oldest), None)

    def _clear(self) -> None:
        self._known.clear()
        self._pins.clear()


def _bare(key: Key) -> Key:
    return key[0], split_asked(key[1])[0]
