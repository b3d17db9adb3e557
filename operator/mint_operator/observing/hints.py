"""Hints from Redis that the placement map has changed, so that the loop reads it sooner than at the next resync."""

import asyncio

import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_operator.observing.dirt import Dirt, Part

WAIT_S = 1.0

log = structlog.get_logger()


async def follow(reader: MapReader, dirt: Dirt) -> None:
    """Mark the map dirty for every hint, forever; reconnect with backoff after a lost connection."""
    failures = 0
    while True:
        try:
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
