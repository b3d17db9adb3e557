"""Followers of the map read only the placements that changed, as long as they know which those are."""

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import OPS_PER_CALL, RECENT_ADAPTERS, RECENT_VERSIONS, MapWriter
from mint_contracts.records import MapChange
from tests.contracts.placed import BASE, assignment, losing_before, placement, write

LARGE = MapChange(
    set_placements=(placement("late"),),
    set_assigned={"e-0": tuple(assignment(f"a-{number:05}") for number in range(OPS_PER_CALL))},
)


async def test_what_changed_since_a_version_is_known_for_a_while(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    first = await write(writer, "a", "b", "c")
    await write(writer, "b", why="moved")
    now = await writer.apply(BASE, MapChange(set_placements=(placement("d"),), del_placements=("c",)))
    moved = {"b": placement("b", why="moved"), "c": None, "d": placement("d")}
    assert await reader.placements_since(BASE, first, now) == moved
    assert await reader.placements_since(BASE, now - 1, now) == {"c": None, "d": placement("d")}
    assert await reader.placements_since(BASE, now, now) is None
    for _ in range(RECENT_VERSIONS):
        now = await write(writer, "a")
    assert await reader.placements_since(BASE, now - RECENT_VERSIONS, now) == {"a": placement("a")}
    assert await reader.placements_since(BASE, now - RECENT_VERSIONS - 1, now) is None
    assert await redis_client.hlen(keys.recent(BASE)) == RECENT_VERSIONS


async def test_too_many_placements_at_once_are_better_all_read(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    many = tuple(placement(f"m-{number}") for number in range(RECENT_ADAPTERS + 1))
    now = await writer.apply(BASE, MapChange(set_placements=many))
    assert await reader.placements_since(BASE, before, now) is None
    assert await reader.placements_since(BASE, now, await write(writer, "b")) == {"b": placement("b")}


async def test_a_version_that_an_earlier_mint_wrote_is_not_known(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    await redis_client.incr(keys.version(BASE))
    assert await reader.placements_since(BASE, before, await write(writer, "b")) is None


async def _cut_off() -> None:
    raise MapUnavailable("placement map", "Redis did not answer")


@pytest.mark.parametrize("after", [LARGE, msgspec.structs.replace(LARGE, set_assigned={})], ids=["parts", "whole"])
async def test_what_a_change_that_was_cut_off_had_placed_is_not_known(
    after: MapChange, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one does not place it again: it is there. But the version still says nothing of it."""
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "a")
    with monkeypatch.context() as patched:
        losing_before(patched, 1, _cut_off)
        with pytest.raises(MapUnavailable):
            await writer.apply(BASE, LARGE)
    assert sorted(await reader.placements(BASE)) == ["a", "late"]
    rest = msgspec.structs.replace(after, set_placements=(placement("b"),))
    now = await writer.apply(BASE, rest)
    assert await reader.placements_since(BASE, before, now) is None
    assert await reader.placements_since(BASE, now, await write(writer, "c")) == {"c": placement("c")}
