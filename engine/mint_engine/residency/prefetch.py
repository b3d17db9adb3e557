"""Prefetches to disk the adapters of waves that wait for admission: one at a time, and only while nothing else loads.

They take only free disk space, and are evicted for anything else. They answer no request and are not on the books:
once their wave is admitted, a load finds their files.
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

RETRY_S = 60.0  # after a failure or an eviction

log = structlog.get_logger(__name__)


class Prefetcher:
    """The prefetcher. `idle` returns whether nothing loads; `on_change` is called after each prefetched adapter.

    Belongs to the event loop.
    """

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

    def split(self, assignments: Iterable[Assignment]) -> list[Assignment]:
        """Prefetch exactly those of `assignments` that are marked `ahead` from now on, and return the others.

        Files that were prefetched for others stay until the disk tier evicts them.
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
        """Try again: something that may have been in the way has ended."""
        if self._wanted:
            self._wake.set()

    def prefetched(self) -> dict[str, Held]:
        """Return the adapters that were prefetched and are still on disk."""
        return {name: each for name, each in self._come.items() if self._loader.disk.holds(each.source)}

    async def run(self) -> None:
        """Prefetch until cancelled."""
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
        here, now = self.prefetched(), time.monotonic()
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
            await self._source_stat.state(want.source)  # raises if the source does not respond
            revision, rank, nbytes = await self._readers.run(want.source, load, awaited=False)
        except MintError as error:
            log.info("not_brought_early", adapter=want.adapter, source=want.source.uri, reason=error.reason)
            self._retry_at[want.source] = time.monotonic() + RETRY_S
            return
        except Exception:  # a defect of one adapter must not keep the others away
            log.exception("early_defect", adapter=want.adapter, source=want.source.uri)
            self._retry_at[want.source] = time.monotonic() + RETRY_S
            return
        self._retry_at[want.source] = time.monotonic() + RETRY_S  # if it is evicted, something else needs the room
        if self._wanted.get(want.adapter) == want:
            self._come[want.adapter] = Held(want.adapter, want.source, Tier.DISK, revision, rank, bytes=nbytes)
            log.info("brought_early", adapter=want.adapter, source=want.source.uri, revision=revision)
            self._on_change()
