"""A registration whose gateway stood still is acknowledged only if it stays, whatever was merged meanwhile."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import MapUnavailable
from mint_contracts.source import Source
from mint_gateway.catalog import compaction, keeper
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.catalog.registration import Registration
from tests.gateway.manifests import BASE, entry, read_anew, swept


@pytest.fixture
def manifests(tmp_path: Path) -> Source:
    return Source(f"file://{tmp_path}/catalog")


class Frozen(Parts):
    """The parts of a gateway that stands still, as on a node that is suspended, just before it writes one."""

    def __init__(self, manifests: Source) -> None:
        super().__init__(manifests)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def write(self, name: str, entries: Sequence[Entry]) -> None:
        self.reached.set()
        await self.go_on.wait()
        await super().write(name, entries)


async def register(redis: Redis, parts: Parts, name: str) -> None:
    registration = Registration(BASE, parts, CatalogWriter(redis), stored=False)
    await registration.add([entry(name, "r1")])
    await registration.finish()


@pytest.fixture
async def late(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> tuple[Frozen, asyncio.Task[None]]:
    """A gateway that stands still while it registers a/late, until the parts around that have been merged."""
    monkeypatch.setattr(keeper, "ON_ITS_WAY_S", -1.0)  # as if more than the usual time had passed
    monkeypatch.setattr(compaction, "ENOUGH", 2)
    await read_anew(redis_client, manifests)
    frozen = Frozen(manifests)
    await register(redis_client, Parts(manifests), "a/before")
    registering = asyncio.create_task(register(redis_client, frozen, "a/late"))
    await frozen.reached.wait()
    await register(redis_client, Parts(manifests), "a/after")
    assert len(await swept(redis_client, manifests)) == 1
    return frozen, registering


async def test_no_registration_is_acknowledged_that_a_merge_has_missed(
    redis_client: Redis, manifests: Source, late: tuple[Frozen, asyncio.Task[None]]
) -> None:
    frozen, registering = late
    frozen.go_on.set()
    with pytest.raises(MapUnavailable, match="took minutes, so a merge may have missed them; send them again"):
        await registering
    await register(redis_client, Parts(manifests), "a/late")
    assert [each.name for each in await read_anew(redis_client, manifests)] == ["a/after", "a/before", "a/late"]


@pytest.mark.parametrize("step", ["begin", "complete"])
async def test_none_is_acknowledged_either_while_the_catalog_is_read_anew(
    redis_client: Redis,
    manifests: Source,
    late: tuple[Frozen, asyncio.Task[None]],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    frozen, registering = late
    take = getattr(CatalogWriter, step)

    async def taken(*given: Any) -> Any:
        answer = await take(*given)
        frozen.go_on.set()
        await asyncio.wait([registering])
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(CatalogWriter, step, taken)
        await Keeper(redis_client, dict).rebuild(BASE, manifests)
    with pytest.raises(MapUnavailable):
        await registering
    await register(redis_client, Parts(manifests), "a/late")
    assert [each.name for each in await read_anew(redis_client, manifests)] == ["a/after", "a/before", "a/late"]
