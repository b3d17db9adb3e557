"""Bringing adapters to the disk ahead of the waves that wait to be admitted: one at a time, when nothing else loads.

They take only room on the disk that is free, and give way there to anything. None of them answers a request, or is
on the books: once its wave is admitted, a load finds its file.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog

from mint_contracts.errors import MintError
from mint_contracts.records import Assignment, Held, Tier
from mint_contracts.source import Source
from mint_engine.residency.loading import Loader
from mint_engine.residency.readers import Readers
from mint_engine.residency.source_stat import SourceStat

RETRY_S = 60.0  # after a failure, or for want of room

log = structlog.get_logger(__name__)


class Early:
    """`idle` says whether nothing loads; `on_change` hears of everything that has come. Belongs to the event loop."""

    def __init__(
        self,
        loader: Loader,
        readers: Readers,
        source_stat: SourceStat,
        idle: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._loader, self._readers, self._source_stat = loader, readers, source_stat
        self._idle, self._on_change = idle, on_change
        self._wanted: dict[str, Assignment] = {}
        self._come: dict[str, Held] = {}
        self._retry_at: dict[Source, float] = {}
        self._wake = asyncio.Event()

    def taken_from(self, assignments: Iterable[Assignment]) -> list[Assignment]:
        """From now on bring what is to be brought ahead of these, and nothing else; returns the others.

        What has come of others is the disk's to evict.
        """
        everything = list(assignments)
        self._want({each.adapter: each for each in everything if each.ahead})
        return [each for each in everything if not each.ahead]

    def _want(self, wanted: dict[str, Assignment]) -> None:
        if wanted == self._wanted:
            return
        self._wanted = wanted
        sources = {each.source for each in wanted.values()}
        self._come = {name: held for name, held in self._come.items() if name in wanted and held.source in sources}
        self._retry_at = {source: at for source, at in self._retry_at.items() if source in sources}
        self._loader.disk.yields(frozenset(sources))
        self._wake.set()

    def nudge(self) -> None:
        """Something has ended that may have been in the way."""
        if self._wanted:
            self._wake.set()

    def held(self) -> dict[str, Held]:
        """What has come, and is still here."""
        return {name: each for name, each in self._come.items() if self._loader.disk.holds(each.source)}

    async def run(self) -> None:
        """Bring what is wanted, until cancelled."""
        while True:
            self._wake.clear()
            want = self._next() if self._idle() else None
            if want is not None:
                await self._bring(want)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self._wanted else None):
                    await self._wake.wait()

    def _next(self) -> Assignment | None:
        here, now = self.held(), time.monotonic()
        for name, want in sorted(self._wanted.items()):
            if name not in here and self._retry_at.get(want.source, 0.0) <= now:
                return want
        return None

    async def _bring(self, want: Assignment) -> None:
        def load() -> tuple[str, int, int]:
            with self._loader.disk.using(want.source):
                packed = self._loader.load(want.source)
                return packed.revision, packed.rank, packed.nbytes

        try:
            await self._source_stat.state(want.source)  # which may be silent
            revision, rank, nbytes = await self._readers.run(want.source, load, awaited=False)
        except MintError as error:
            log.info("not_brought_early", adapter=want.adapter, source=want.source.uri, reason=error.reason)
            self._retry_at[want.source] = time.monotonic() + RETRY_S
            return
        except Exception:  # whatever is wrong with one adapter, others are brought
            log.exception("early_defect", adapter=want.adapter, source=want.source.uri)
            self._retry_at[want.source] = time.monotonic() + RETRY_S
            return
        self._retry_at[want.source] = time.monotonic() + RETRY_S  # if it is evicted, something else needs the room
        if self._wanted.get(want.adapter) == want:
            self._come[want.adapter] = Held(want.adapter, want.source, Tier.DISK, revision, rank, bytes=nbytes)
            log.info("brought_early", adapter=want.adapter, source=want.source.uri, revision=revision)
            self._on_change()
