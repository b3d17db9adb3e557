"""Hints from Redis that the placement map has changed, so that the loop reads it sooner than at the next resync.

Each time that the operator connects for them it loads Redis's functions, since engines and gateways may run as users
that are not permitted to, and would find them missing after an upgrade or once Redis has lost them.
"""

import asyncio

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import functions
from mint_contracts.backoff import delay_s
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_operator.observing.dirt import Dirt, Part

WAIT_S = 1.0

log = structlog.get_logger()


async def follow(redis: Redis, dirt: Dirt) -> None:
    """Mark the map dirty for every hint, forever; reconnect with backoff after a lost connection."""
    reader, failures = MapReader(redis), 0
    while True:
        try:
            await _load(redis, failures)
            async with reader.changes() as wait:
                dirt.mark(Part.MAP)  # for hints missed while not connected
                while True:
                    hint = await wait(WAIT_S)
                    failures = 0
                    if hint is not None:
                        dirt.mark(Part.MAP)
        except (MapUnavailable, ResponseError) as error:
            failures += 1
            if failures == 1:
                log.warning("hints of the placement map lost", error=str(error))
            await asyncio.sleep(delay_s(failures, first_s=0.2, cap_s=5.0))


async def _load(redis: Redis, failures: int) -> None:
    """Load the functions. Those that Redis has work even if it takes no others now."""
    try:
        await functions.load(redis)
    except (MapUnavailable, ResponseError) as error:
        if not failures:
            log.warning("functions of Redis not loaded", error=str(error))
