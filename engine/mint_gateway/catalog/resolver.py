"""Resolving names to catalog entries for every request, with a cache that drops entries when they change."""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.catalog_reader import EVERYTHING, CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.errors import MapUnavailable
from mint_contracts.names import split_asked
from mint_gateway.answers import Answers

REMEMBERED = 65_536  # about 50 MB
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader, self._away = reader, away
        self._answers: Answers[Key, Entry | None] = Answers(REMEMBERED, clock, self._unpin)
        self._pins: dict[Key, set[str]] = {}  # each name's cached NAME@REVISION keys
        self.read: set[str] = set()  # bases whose catalogs have ever answered here

    async def find(self, base: str, asked: str) -> Entry | None:
        """Return the entry of NAME or NAME@REVISION, or None if the catalog does not have it. Raises MapUnavailable.

        A retired name has an entry that says so. While Redis is away, cached entries stay valid, so that requests do
        not wait for a Redis that does not answer; so they do while the catalog is read from its manifests.
        """
        key = base, asked
        known = self._answers.known(key)
        if known is not None and (known.fresh or self._away()):
            return known.value
        try:
            return await self._answers.asked(key, lambda: self._read(key))
        except MapUnavailable:
            if known is None:
                raise
            return known.value

    def forget(self, base: str, names: Iterable[str]) -> None:
        """Drop these names and their revisions from the cache, because they have changed."""
        changed = set(names)
        if EVERYTHING in changed:
            self._clear()
            self._answers.ask_again(lambda _: True)
            return
        for name in changed:
            for asked in (name, *self._pins.pop((base, name), ())):
                self._answers.forget((base, asked))
        self._answers.ask_again(lambda key: key[0] == base and _bare(key)[1] in changed)

    async def follow(self, base: str) -> None:
        """Drop what changes in a base's catalog from the cache, until cancelled."""
        failures, again = 0, False
        while True:
            try:
                async with self._reader.news(base) as wait:
                    # Earlier news may have been missed; an incomplete catalog is announced once it is complete.
                    if not again or (await self._reader.state(base)).complete:
                        self._clear()
                    failures, again = 0, True
                    while True:
                        self.forget(base, await wait(NEWS_WAIT_S))
            except (MapUnavailable, ResponseError) as error:
                failures += 1
                _log.warning("catalog's changes cannot be followed", base_model=base, error=str(error))
            await asyncio.sleep(delay_s(failures, first_s=0.1, cap_s=2.0))

    async def _read(self, key: Key) -> Entry | None:
        entry = await self._reader.find(key[0], *split_asked(key[1]))
        self.read.add(key[0])
        if "@" in key[1]:
            self._pins.setdefault(_bare(key), set()).add(key[1])
        return entry

    def _unpin(self, key: Key) -> None:
        pins = self._pins.get(_bare(key), set())
        pins.discard(key[1])
        if not pins:
            self._pins.pop(_bare(key), None)

    def _clear(self) -> None:
        self._answers.forget_all()
        self._pins.clear()


def _bare(key: Key) -> Key:
    return key[0], split_asked(key[1])[0]
