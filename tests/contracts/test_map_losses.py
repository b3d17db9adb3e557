"""What the map loses to a flush, full memory or another version affects nothing else, and is written again."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import FORGOTTEN_PER_CALL, OPS_PER_CALL, MapWriter
from mint_contracts.records import BaseRecord, MapChange, Tier, WaveRecord
from tests.contracts.placed import BASE, assignment, held, losing_before, placement, record, write
from tests.redis_process import full_memory

PINNED = {"residency": "Pinned"}


async def test_one_record_of_another_version_hinders_no_other(redis_client: Redis) -> None:
    """After a rollback, a residency tier that is unknown here is read as the warmest known one."""
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    wave = WaveRecord("demo/wave", "names", 1, 1, Tier.HOST)
    await writer.apply(BASE, MapChange(set_placements=(placement("b"),), set_waves=(wave,)))
    newer = {
        keys.placements(BASE): msgspec.to_builtins(placement("a"))
        | {"places": [PINNED | {"engine": "e-0", "why": ""}]},
        keys.assigned(BASE, "e-0"): msgspec.to_builtins(assignment("a")) | PINNED,
        keys.waves(BASE): msgspec.to_builtins(wave) | PINNED,
        keys.held(BASE, "e-0"): msgspec.to_builtins(held("a")) | {"tier": "Pinned"},
    }
    for key, each in newer.items():
        await redis_client.hset(key, "a", msgspec.json.encode(each).decode())
        await redis_client.hset(key, "odd", '{"adapter": 7}')
    state = await reader.state(BASE, ["e-0"])
    assert sorted(state.placements) == ["a", "b"]
    assert [each.residency for each in state.placements["a"].places] == [Tier.DEVICE]
    assert state.assigned["e-0"] == {"a": msgspec.structs.replace(assignment("a"), residency=Tier.DEVICE)}
    assert state.waves == {"demo/wave": wave, "a": msgspec.structs.replace(wave, residency=Tier.DEVICE)}
    assert await reader.held(BASE, "e-0") == {}


@pytest.mark.parametrize("odd", ["{", "7", "[]", '{"places": 7}', '{"places": [7]}', '{"residency": []}'])
async def test_one_record_that_is_nothing_like_it_hinders_no_other(odd: str, redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    wave = WaveRecord("demo/wave", "names", 1, 1, Tier.HOST)
    mine = MapChange(set_placements=(placement("b"),), set_waves=(wave,), set_assigned={"e-0": (assignment("b"),)})
    await writer.apply(BASE, mine)
    await MapReporter(redis_client, BASE, "e-0").report(record(), [held("b")], [], full=True)
    hashes = keys.placements(BASE), keys.assigned(BASE, "e-0"), keys.waves(BASE), keys.held(BASE, "e-0")
    for key in hashes:
        await redis_client.hset(key, "odd", odd)
    state = await reader.state(BASE, ["e-0"])
    assert (list(state.placements), list(state.assigned["e-0"]), list(state.waves)) == (["b"], ["b"], ["demo/wave"])
    assert await reader.held(BASE, "e-0") == {"b": held("b")}


async def test_after_a_flush_both_sides_write_again_what_they_know(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=5), MapReader(redis_client)
    reporter = MapReporter(redis_client, BASE, "e-0")
    await write(writer, "a")
    await reporter.report(record(), [held("a")], [], full=True)
    await redis_client.flushall()
    assert await reader.version(BASE) is None  # "not known", never "nothing is wanted"
    assert not await reporter.report(record(), [], [], full=False)  # the engine learns that the map was lost
    assert await reporter.report(record(), [held("a")], [], full=True)
    await write(writer, "a")
    assert list(await reader.placements(BASE)) == ["a"]
    with pytest.raises(StaleEpoch):
        await write(MapWriter(redis_client, epoch=4), "a")


NAMES = [f"a-{number:04d}" for number in range(2 * OPS_PER_CALL + 1)]
PARTS = 6  # three of placements, three of the engine's assignments
WHOLE = MapChange(
    base=BaseRecord(BASE),
    set_placements=tuple(map(placement, NAMES)),
    set_assigned={"e-0": tuple(map(assignment, NAMES))},
)


@pytest.mark.parametrize("part", range(1, PARTS))
async def test_a_map_that_is_lost_again_while_it_is_written_is_not_taken_for_whole(
    part: int, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example in a failover that clients' connections survive: no error shows that earlier parts are gone."""
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=5)
    over = await reader.state(BASE, ["e-0"])
    losing_before(monkeypatch, part, redis_client.flushall)
    with pytest.raises(MapUnavailable, match="reading it anew"):
        await writer.apply(BASE, WHOLE, over)
    assert await reader.version(BASE) is None
    await writer.apply(BASE, WHOLE, await reader.state(BASE, ["e-0"]))
    state = await reader.state(BASE, ["e-0"])
    assert (len(state.placements), len(state.assigned["e-0"])) == (len(NAMES), len(NAMES))


async def test_a_change_in_parts_is_refused_if_another_came_in_between(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=5)
    losing_before(monkeypatch, 2, lambda: MapWriter(redis_client, epoch=5).apply(BASE, WHOLE))
    with pytest.raises(MapUnavailable):
        await writer.apply(BASE, WHOLE)
    assert await reader.version(BASE) == 1


async def test_a_change_that_is_there_leaves_nothing_of_how_it_came(redis_client: Redis) -> None:
    await MapWriter(redis_client, epoch=5).apply(BASE, WHOLE)
    assert not await redis_client.exists(keys.writing(BASE))


async def test_a_base_is_named_whenever_its_map_is_there(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes a loss just before the change is written."""
    losing_before(monkeypatch, 0, redis_client.flushall)
    await write(MapWriter(redis_client, epoch=5), "a")
    assert await MapReader(redis_client).bases() == [BASE]


async def test_forgetting_a_base_removes_all_of_it_but_the_fence(redis_client: Redis) -> None:
    writer = MapWriter(redis_client, epoch=1)
    given = {f"e-{number}": (assignment("a"),) for number in range(FORGOTTEN_PER_CALL + 1)}
    await writer.apply(BASE, MapChange(base=BaseRecord(BASE), set_assigned=given))
    await MapReporter(redis_client, BASE, "e-0").report(record(), [held("a")], [], full=True)
    await writer.forget(BASE)
    await writer.forget(BASE)  # repeating it changes nothing
    assert await redis_client.keys("*") == [keys.epoch(BASE)]


@pytest.fixture
async def full_redis(redis_client: Redis) -> AsyncIterator[Redis]:
    """A Redis that holds a base and has then run out of memory."""
    await write(MapWriter(redis_client, epoch=1), "a", "b")
    await MapReporter(redis_client, BASE, "e-0").report(record(), [held("a")], [], full=True)
    async with full_memory(redis_client):
        yield redis_client


async def test_where_memory_is_full_engines_live_and_changes_are_written(full_redis: Redis) -> None:
    reader, writer = MapReader(full_redis), MapWriter(full_redis, epoch=1)
    assert await MapReporter(full_redis, BASE, "e-0").report(
        record(sequence=2), [held("c")], ["a"], full=False, over=1
    )
    assert (await reader.pulse(BASE)).engines == {"e-0": record(sequence=2)}
    await writer.apply(BASE, MapChange(del_placements=("a",)))
    assert list(await reader.placements(BASE)) == ["b"]


async def test_where_memory_is_full_a_new_base_is_named(full_redis: Redis) -> None:
    await MapWriter(full_redis, epoch=1).apply("demo/new", MapChange(set_placements=(placement("a"),)))
    assert await MapReader(full_redis).bases() == ["demo/new", BASE]


async def test_where_memory_is_full_a_base_can_still_be_forgotten(full_redis: Redis) -> None:
    await MapWriter(full_redis, epoch=1).forget(BASE)
    assert await full_redis.keys("*") == [keys.epoch(BASE)]
