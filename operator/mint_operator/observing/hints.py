"""Hints from Redis that the placement map has changed, so that the loop reads it sooner than at the next resync.

Each time that the operator connects for them, and every minute, it loads Redis's functions, since engines and
gateways may run as users that are not permitted to, and would find them missing after an upgrade or once Redis has
lost them.
"""

import asyncio
import time

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import functions
from mint_contracts.backoff import delay_s
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_operator.observing.dirt import Dirt, Part

WAIT_S = 1.0
LOAD_EVERY_S = 60.0

log = structlog.get_logger()


async def follow(redis: Redis, dirt: Dirt) -> None:
    """Mark the map dirty for every hint, forever; reconnect with backoff after a lost connection."""
    reader, loader, failures = MapReader(redis), _Loader(redis), 0
    while True:
        try:
            await loader.load()
            async with reader.changes() as wait:
                dirt.mark(Part.MAP)  # for hints missed while not connected
                while True:
                    hint = await wait(WAIT_S)
                    failures = 0
                    if hint is not None:
                        dirt.mark(Part.MAP)
                    if loader.due:
                        await loader.load()
        except (MapUnavailable, ResponseError) as error:
            failures += 1
            if failures == 1:
                log.warning("hints of the placement map lost", error=str(error))
            await asyncio.sleep(delay_s(failures, first_s=0.2, cap_s=5.0))


class _Loader:
    """Loads the functions. Those that Redis has work even if it takes no others now, as with its memory full."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._at = 0.0
        self._told = False

    @property
    def due(self) -> bool:
        """Whether it is time to load them again."""
        return time.monotonic() >= self._at

    async def load(self) -> None:
        """Load them, where Redis lacks them; log the first of several failures in a row."""
        try:
            await functions.load(self._redis)
        except (MapUnavailable, ResponseError) as error:
            if not self._told:
                log.warning("functions of Redis not loaded", error=str(error))
            self._told = True
        else:
            self._told = False
        self._at = time.monotonic() + LOAD_EVERY_S
