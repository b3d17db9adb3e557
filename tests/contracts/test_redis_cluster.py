"""A Redis Cluster is refused with a message that says what to use instead."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts.errors import MapUnavailable
from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from tests.contracts.placed import BASE, write
from tests.redis_process import RedisProcess, free_port
from tests.waiting import until


def node(folder: Path) -> tuple[RedisProcess, int]:
    """Return a cluster's node, and the port at which the other nodes talk to it."""
    folder.mkdir()
    bus = free_port()
    return RedisProcess(folder, "--cluster-enabled", "yes", "--cluster-port", str(bus)), bus


@pytest.fixture
async def led_on(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of a cluster's node that owns no keys, as another node owns all of them."""
    (asked, _), (keeper, bus) = node(tmp_path / "asked"), node(tmp_path / "keeper")
    with asked, keeper:
        async with Redis.from_url(asked.url) as joining, Redis.from_url(keeper.url) as joined:

            async def say(redis: Redis, *words: object) -> Any:
                return await redis.execute_command("CLUSTER", *words)  # type: ignore[no-untyped-call]

            async def is_whole() -> bool:
                return b"cluster_state:ok" in await say(joining, "INFO")

            await say(joined, "ADDSLOTSRANGE", 0, 16383)
            await say(joining, "MEET", "127.0.0.1", keeper.port, bus)
            await until(is_whole)
        redis = connect(asked.url)
        yield redis
        await redis.aclose()


async def test_neither_reads_nor_writes_go_on_to_another_node(led_on: Redis) -> None:
    reader, writer = MapReader(led_on), MapWriter(led_on, epoch=1)
    for attempt in (reader.bases, lambda: reader.holdings(BASE, ["e-0"]), lambda: write(writer, "acme/a")):
        with pytest.raises(MapUnavailable, match=r"Redis Cluster.*give it one without cluster mode"):
            await attempt()
