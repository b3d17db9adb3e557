"""Records of one base's part of the placement map: what is written to it and reported about it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts import functions, keys, map_reporter, map_writer
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import Assignment, EngineRecord, Held, MapChange, Place, Placement, Tier
from mint_contracts.source import Source
from tests.engine_views import engine_record

BASE = "demo/smollm2"
SOURCE = Source("s3://adapters/x", "v1")


def placement(adapter: str, engine: str = "e-0", why: str = "spread") -> Placement:
    return Placement(adapter, SOURCE, ("demo/wave",), (Place(engine, Tier.DEVICE, why),))


def assignment(adapter: str) -> Assignment:
    return Assignment(adapter, SOURCE, Tier.HOST, ("demo/wave",))


def record(engine: str = "e-0", incarnation: int = 1, sequence: int = 1) -> EngineRecord:
    return engine_record(engine, incarnation=incarnation, slots_used=1, map_version=3, sequence=sequence)


def held(adapter: str, tier: Tier = Tier.DEVICE) -> Held:
    return Held(adapter, SOURCE, tier, revision="sha256:1", rank=8)


async def write(writer: MapWriter, *adapters: str, why: str = "spread") -> int:
    return await writer.apply(BASE, MapChange(set_placements=tuple(placement(a, why=why) for a in adapters)))


async def outlive(redis: Redis, base: str, engine: str) -> None:
    """Pretend that a heartbeat's lifetime has passed since the engine last reported a part of what it holds."""
    kept_s = map_reporter.TELLING_TTL_S - map_reporter.HEARTBEAT_TTL_S
    assert await redis.pexpire(keys.telling(base, engine), int(kept_s * 1000))


def losing_before(monkeypatch: pytest.MonkeyPatch, part: int, lose: Callable[[], Awaitable[Any]]) -> None:
    """Make `lose` run once, just before Redis gets the given part (counted from 0) of the next change."""
    real, sent = functions.call, 0

    async def call(*args: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent == part + 1:
            await lose()
        return await real(*args)

    monkeypatch.setattr(map_writer, "call", call)
