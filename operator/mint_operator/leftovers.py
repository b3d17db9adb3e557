"""Takes bases of namespaces that cannot be read out of the map, once no engine of theirs is left.

Such a namespace was deleted, most often: its pods end after the operator's Role there, so that nobody is left who may
see them go. Gateways would take a base that stays in the map for one whose engines are away for now, and refuse each
name that could be in its store until they are back. Where only the Role is missing, engines live on, and their base
stays.
"""

import asyncio
import time
from collections.abc import Collection, Mapping

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter

LOOK_S = 10.0
GONE_S = 120.0  # longer than an engine is silent while it starts again; one that drains, or loads its base, reports

log = structlog.get_logger()


async def forget(reader: MapReader, writer: MapWriter, namespaces: Collection[str]) -> None:
    """Look after the bases of these namespaces forever. Raises StaleEpoch."""
    silent: Mapping[str, float] = {}
    while True:
        try:
            silent = await look(reader, writer, namespaces, silent, time.monotonic())
        except (MapUnavailable, ResponseError, msgspec.DecodeError):
            silent = {}  # heartbeats may have run out unseen
        await asyncio.sleep(LOOK_S)


async def look(
    reader: MapReader, writer: MapWriter, namespaces: Collection[str], silent: Mapping[str, float], now: float
) -> dict[str, float]:
    """Forget the bases of these namespaces that have been silent for GONE_S; return since when the others are.

    Raises MapUnavailable, also if engines may be silent only because Redis takes no writes.
    """
    found: dict[str, float] = {}
    for base in await reader.bases():
        if base.partition("/")[0] not in namespaces:
            continue
        engines = (await reader.pulse(base)).engines
        if any(record is not None for record in engines.values()) or await reader.telling(base, engines):
            continue
        await reader.confirm_writes(base)
        since = silent.get(base, now)
        if now - since < GONE_S:
            found[base] = since
            continue
        await writer.forget(base)
        log.info("base forgotten", base=base, reason="its namespace cannot be read, and no engine of it is left")
    return found
