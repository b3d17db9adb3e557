"""Failover: the primary is demoted, and its address leads to the new primary from then on."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable
from mint_contracts.functions import bounded, connect
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import MapWriter
from tests.contracts.placed import BASE, record, write
from tests.engine_views import engine_views
from tests.redis_process import RedisProcess
from tests.relay import relaying
from tests.waiting import until


async def by_function(redis: Redis) -> None:
    await write(MapWriter(redis, epoch=1))


async def by_command(redis: Redis) -> None:
    await bounded(lambda: redis.sadd(keys.BASES, BASE))


async def by_pipeline(redis: Redis) -> None:
    pipeline = redis.pipeline(transaction=False)
    pipeline.sadd(keys.BASES, BASE)
    await bounded(pipeline.execute)


async def by_transaction(redis: Redis) -> None:
    pipeline = redis.pipeline(transaction=True)
    pipeline.sadd(keys.BASES, BASE)
    await bounded(pipeline.execute)


@pytest.fixture
async def failed_over(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client whose connection leads to a Redis that has become a replica; its next one leads to the primary."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with RedisProcess(tmp_path, *at_once) as old, relaying(f"127.0.0.1:{old.port}") as relay:
        redis = connect(f"redis://127.0.0.1:{relay.port}/0")
        await write(MapWriter(redis, epoch=1))
        with RedisProcess(tmp_path, "--replicaof", "127.0.0.1", str(old.port), *at_once) as new:
            async with Redis.from_url(old.url) as before, Redis.from_url(new.url) as after:

                async def is_in_step() -> bool:
                    replica = (await before.info("replication")).get("slave0", {})
                    return bool(replica.get("state") == "online")

                async def is_primary() -> bool:
                    return bool((await after.info("replication"))["role"] == "master")

                await until(is_in_step)
                await before.execute_command("FAILOVER", "TO", "127.0.0.1", new.port)  # type: ignore[no-untyped-call]
                await until(is_primary)
            relay.server = "127.0.0.1", new.port
            yield redis
            await redis.aclose()


@pytest.mark.parametrize("change", [by_function, by_command, by_pipeline, by_transaction])
async def test_after_a_failover_one_write_is_refused_and_the_next_reaches_the_new_primary(
    failed_over: Redis, change: Callable[[Redis], Awaitable[None]]
) -> None:
    with pytest.raises(MapUnavailable, match="Redis is a replica"):
        await change(failed_over)
    await change(failed_over)


async def test_heartbeats_go_on_after_a_failover(failed_over: Redis) -> None:
    reporter = MapReporter(failed_over, BASE, "e-0")
    with pytest.raises(MapUnavailable, match="Redis is a replica"):
        await reporter.report(record(), [], [], full=True)
    await reporter.report(record(), [], [], full=True)
    assert [view.record for view in await engine_views(MapReader(failed_over), BASE)] == [record()]
