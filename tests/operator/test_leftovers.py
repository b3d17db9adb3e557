"""Bases of deleted namespaces leave the map once their engines are gone, over a real Redis."""

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_operator.leftovers import GONE_S, look
from tests.operator.stage import PlayedEngine

LEFT, OTHER = "left/smol", "team/smol"


async def looked(redis: Redis, silent: dict[str, float], now: float) -> dict[str, float]:
    return await look(MapReader(redis), MapWriter(redis, 2), ["left"], silent, now)


@pytest.fixture
async def engine(redis_client: Redis) -> PlayedEngine:
    """Return the only engine of one of two bases, whose namespace is left out."""
    for base in (LEFT, OTHER):
        await MapWriter(redis_client, 1).apply(base, MapChange(base=BaseRecord(base)))
    engine = PlayedEngine(redis_client, LEFT, "smol-0")
    await engine.report()
    return engine


async def test_a_base_without_engines_is_forgotten_after_a_while(engine: PlayedEngine, redis_client: Redis) -> None:
    reader = MapReader(redis_client)
    await engine.leave()
    silent = await looked(redis_client, {}, 100.0)
    silent = await looked(redis_client, silent, 99.0 + GONE_S)
    assert (silent, await reader.bases()) == ({LEFT: 100.0}, [LEFT, OTHER])
    assert await looked(redis_client, silent, 100.0 + GONE_S) == {}
    assert await reader.bases() == [OTHER]
    assert await redis_client.keys(f"mint:{{{LEFT}}}:*") == [keys.epoch(LEFT)]


async def test_a_base_stays_as_long_as_an_engine_reports(engine: PlayedEngine, redis_client: Redis) -> None:
    assert await looked(redis_client, {LEFT: 100.0}, 100.0 + GONE_S) == {}
    await engine.leave()
    assert await looked(redis_client, {}, 100.0 + GONE_S) == {LEFT: 100.0 + GONE_S}, "from when it has left"
    assert await MapReader(redis_client).bases() == [LEFT, OTHER]


async def test_nothing_is_forgotten_while_redis_takes_no_heartbeats(
    engine: PlayedEngine, redis_client: Redis
) -> None:
    await engine.leave()
    await redis_client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(MapUnavailable):
            await looked(redis_client, {LEFT: 100.0}, 100.0 + GONE_S)
    finally:
        await redis_client.config_set("min-replicas-to-write", 0)
    assert await MapReader(redis_client).bases() == [LEFT, OTHER]
