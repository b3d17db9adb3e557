"""A gateway's background work on catalogs: keeping Redis complete, and dropping cached entries that changed."""

import asyncio
import time

from redis.asyncio import Redis

from mint_contracts.awaiting import end_tasks
from mint_contracts.catalog_calls import incomplete
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.source import Source
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.mirror import Mirror

LOOK_S = 0.5
WHOLE_WAIT_S = 10.0
WHOLE_POLL_S = 0.05


class Catalogs:
    """The catalogs of the bases that the mirror knows."""

    def __init__(self, redis: Redis, mirror: Mirror) -> None:
        self._mirror = mirror
        self.reader = CatalogReader(redis)
        self.resolver = Resolver(self.reader, away=lambda: mirror.away)
        self._keeper = Keeper(redis, self.manifests, self._stored)

    @property
    def failing(self) -> int:
        """The number of catalogs whose last maintenance failed."""
        return self._keeper.failing

    def manifests(self) -> dict[str, Source]:
        """Return where each base with a catalog keeps its manifests."""
        records = {base: view.announced or view.record for base, view in self._mirror.views.items()}
        return {base: record.catalog for base, record in records.items() if record and record.catalog}

    def _stored(self, base: str) -> bool:
        """Return whether a base has an adapter store, or may have one while the map is not known."""
        view = self._mirror.views.get(base)
        return view is None or view.record is None or view.record.store is not None

    async def whole(self, base: str, manifests: Source) -> None:
        """Wait until Redis has everything in a base's manifests, which takes a moment for a new base.

        Raises MapUnavailable after WHOLE_WAIT_S, or if Redis does not answer.
        """
        asked = time.monotonic()
        while not (await self.reader.state(base)).is_complete_copy_of(manifests):
            if time.monotonic() - asked > WHOLE_WAIT_S:
                raise incomplete(base)
            self._keeper.wake()
            await asyncio.sleep(WHOLE_POLL_S)

    async def run(self) -> None:
        """Maintain the catalogs and follow their changes until cancelled."""
        following: dict[str, asyncio.Task[None]] = {}
        keeping = asyncio.create_task(self._keeper.run())
        try:
            while not keeping.done():
                wanted = self.manifests()
                for base in wanted.keys() - following.keys():
                    following[base] = asyncio.create_task(self.resolver.follow(base))
                for base in following.keys() - wanted.keys():
                    following.pop(base).cancel()
                await asyncio.sleep(LOOK_S)
            await keeping  # raises the exception that ended it
        finally:
            await end_tasks((keeping, *following.values()))
