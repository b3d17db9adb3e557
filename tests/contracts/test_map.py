"""The placement map on a real Redis: who may write, what readers see, what a loss costs."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import HEARTBEAT_TTL_S, MapReporter
from mint_contracts.map_writer import OPS_PER_CALL, MapWriter
from mint_contracts.records import (
    Assignment,
    BaseRecord,
    EngineRecord,
    Failure,
    Held,
    MapChange,
    Place,
    Placement,
    Tier,
    WaveRecord,
)
from mint_contracts.source import Source
from mint_contracts.train_reporter import TrainReporter
from tests.redis_process import full_memory
from tests.waiting import until

BASE = "demo/smollm2"
SOURCE = Source("s3://adapters/x", "v1")
PINNED = {"residency": "Pinned"}


def placement(adapter: str, engine: str = "e-0", why: str = "spread") -> Placement:
    return Placement(adapter, SOURCE, ("demo/wave",), (Place(engine, Tier.DEVICE, why),))


def assignment(adapter: str) -> Assignment:
    return Assignment(adapter, SOURCE, Tier.HOST, ("demo/wave",))


def record(engine: str = "e-0", incarnation: int = 1, sequence: int = 1) -> EngineRecord:
    return EngineRecord(engine, "10.0.0.1:8470", incarnation, True, 1, 8, 0, 0, 3, sequence)


def held(adapter: str, tier: Tier = Tier.DEVICE) -> Held:
    return Held(adapter, SOURCE, tier, revision="sha256:1", rank=8)


async def write(writer: MapWriter, *adapters: str, why: str = "spread") -> int:
    return await writer.apply(BASE, MapChange(set_placements=tuple(placement(a, why=why) for a in adapters)))


# What is written is what is read.


async def test_every_record_comes_back_as_it_was_written(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    base = BaseRecord(BASE, store=SOURCE, context_length=2048, device_slots=8)
    change = MapChange(
        base=base,
        set_placements=(placement("demo/größe"), placement("demo/b", "e-1")),
        set_assigned={"e-0": (assignment("demo/a"),), "e-1": (assignment("demo/b"), assignment("demo/c"))},
    )
    version = await writer.apply(BASE, change)
    state = await reader.state(BASE, [])
    assert (state.version, state.base) == (version, base)
    assert state.placements == {each.adapter: each for each in change.set_placements}
    assert (await reader.state(BASE, ["e-0", "e-1"])).assigned == {
        "e-0": {"demo/a": assignment("demo/a")},
        "e-1": {"demo/b": assignment("demo/b"), "demo/c": assignment("demo/c")},
    }
    assert await reader.bases() == [BASE]


async def test_what_tells_of_waves_comes_back_and_calls_nobody(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    version = await write(writer, "a")
    waves = [WaveRecord(f"demo/w{n}", "names", n, 1, Tier.DEVICE, position=n, message="later") for n in range(3)]
    assert await writer.apply(BASE, MapChange(set_waves=tuple(waves))) == version
    assert (await reader.state(BASE, [])).waves == {each.wave: each for each in waves}
    assert await writer.apply(BASE, MapChange(del_waves=("demo/w1",))) == version
    assert sorted(await reader.waves(BASE)) == ["demo/w0", "demo/w2"]
    assert (await reader.has_wave(BASE, "demo/w0"), await reader.has_wave(BASE, "demo/w1")) == (True, False)
    with pytest.raises(StaleEpoch):
        await MapWriter(redis_client, epoch=0).apply(BASE, MapChange(del_waves=("demo/w0",)))


async def test_deleting_takes_away_what_is_named_and_nothing_else(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    await write(writer, "a", "b")
    await writer.apply(BASE, MapChange(set_assigned={"e-0": (assignment("a"), assignment("b"))}))
    await writer.apply(BASE, MapChange(del_placements=("a", "never"), del_assigned={"e-0": ("b",), "e-9": ("x",)}))
    assert list(await reader.placements(BASE)) == ["b"]
    assert list(await reader.assigned(BASE, "e-0")) == ["a"]


async def test_the_version_grows_with_every_change_and_is_unknown_before_the_first(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    assert await reader.version(BASE) is None
    versions = [await write(writer, "a") for _ in range(3)]
    assert versions == sorted(set(versions))
    assert await reader.version(BASE) == versions[-1]


async def test_bases_do_not_see_each_other(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    await write(writer, "a")
    await writer.apply("demo/smollm2-b", MapChange(set_placements=(placement("b"),)))
    await writer.forget(BASE)
    assert list(await reader.placements("demo/smollm2-b")) == ["b"]
    assert await reader.bases() == ["demo/smollm2-b"]


# One operator at a time.


async def test_an_older_epoch_is_refused_and_changes_nothing(redis_client: Redis) -> None:
    old, new, reader = MapWriter(redis_client, 1), MapWriter(redis_client, 2), MapReader(redis_client)
    await write(old, "a", why="old")
    await write(new, "a", why="new")
    before = await reader.state(BASE, ["e-0"])
    for attempt in (
        write(old, "a", "b", why="old"),
        old.apply(BASE, MapChange(base=BaseRecord(BASE), set_assigned={"e-0": (assignment("a"),)})),
        old.forget(BASE),
    ):
        with pytest.raises(StaleEpoch, match="newer writer"):
            await attempt
    assert await reader.state(BASE, ["e-0"]) == before
    assert await reader.bases() == [BASE]


async def test_the_fence_outlives_forgetting(redis_client: Redis) -> None:
    old, new = MapWriter(redis_client, 1), MapWriter(redis_client, 2)
    await write(new, "a")
    await new.forget(BASE)
    with pytest.raises(StaleEpoch):
        await write(old, "a")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abc")), max_size=20))
async def test_whatever_the_order_a_write_wins_if_no_newer_epoch_came_before(
    redis_client: Redis, writes: list[tuple[int, str]]
) -> None:
    await redis_client.flushdb()
    reader, newest, expected = MapReader(redis_client), 0, dict[str, str]()
    for number, (epoch, adapter) in enumerate(writes):
        why = f"{epoch}/{number}"
        if epoch >= newest:
            await write(MapWriter(redis_client, epoch), adapter, why=why)
            newest, expected[adapter] = epoch, why
        else:
            with pytest.raises(StaleEpoch):
                await write(MapWriter(redis_client, epoch), adapter, why=why)
    assert {name: each.places[0].why for name, each in (await reader.placements(BASE)).items()} == expected


async def test_of_two_operators_that_write_at_once_exactly_one_wins(redis_client: Redis) -> None:
    names = [f"a-{number}" for number in range(3 * OPS_PER_CALL)]

    async def govern(epoch: int) -> bool:
        writer = MapWriter(redis_client, epoch)
        try:
            for _ in range(4):
                await write(writer, *names, why=str(epoch))
        except StaleEpoch:
            return False
        return True

    loser, winner = await asyncio.gather(govern(1), govern(2))
    assert (loser, winner) == (False, True)
    # Chunks of the two were interleaved: none of the loser's came after the winner's.
    assert {each.places[0].why for each in (await MapReader(redis_client).placements(BASE)).values()} == {"2"}


# A change is seen when all of it is there.


async def test_a_big_change_shows_its_version_only_when_complete(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    before = await write(writer, "first")
    names = [f"a-{number}" for number in range(2 * OPS_PER_CALL + 1)]
    seen: list[tuple[int | None, int]] = []

    async def watch() -> None:
        while True:
            version = await reader.version(BASE)
            seen.append((version, len(await reader.placements(BASE))))

    watching = asyncio.create_task(watch())
    await until(lambda: seen)
    change = MapChange(
        set_placements=tuple(map(placement, names)), set_assigned={"e-0": tuple(map(assignment, names))}
    )
    after = await writer.apply(BASE, change)
    await until(lambda: seen[-1][0] == after)
    watching.cancel()
    await asyncio.wait([watching])
    assert after == before + 1
    assert {version for version, _ in seen} == {before, after}
    assert all(count == len(names) + 1 for version, count in seen if version == after)
    assert len(await reader.assigned(BASE, "e-0")) == len(names)


async def test_a_change_that_broke_off_leaves_the_old_version(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "first")
    await redis_client.set(keys.assigned(BASE, "e-0"), "no hash")  # its part will fail, after the placements' part
    change = MapChange(set_placements=(placement("second"),), set_assigned={"e-0": (assignment("second"),)})
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await writer.apply(BASE, change)
    assert await reader.version(BASE) == before
    await redis_client.delete(keys.assigned(BASE, "e-0"))
    assert await writer.apply(BASE, change) == before + 1


async def test_hints_tell_of_changes_by_both_sides(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    async with reader.changes(BASE) as one, reader.changes() as every:
        await write(writer, "a")
        await MapReporter(redis_client, BASE, "e-0").report(record(), [], [], full=True)
        await writer.apply("demo/other", MapChange())
        assert await hints(one) == ["map", "engine e-0"]
        assert await hints(every) == ["map", "engine e-0", "map"]


async def hints(wait: object) -> list[str]:
    """All hints that have come."""
    found: list[str] = []
    misses = 0
    while misses < 2:  # the first None may be the subscription's own confirmation
        hint = await wait(0.1)  # type: ignore[operator]
        misses = misses + 1 if hint is None else 0
        found += [] if hint is None else [hint]
    return found


# Engines speak for themselves alone.


async def test_a_full_report_is_needed_first_and_then_differences_do(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    assert not await reporter.report(record(), [held("a")], [], full=False)
    assert await reader.engines(BASE) == []
    assert await reporter.report(record(), [held("a"), held("b")], [], full=True)
    assert await reporter.report(record(sequence=2), [held("c"), held("a", Tier.HOST)], ["b"], full=False)
    (view,) = await reader.engines(BASE)
    assert view.record == record(sequence=2)
    assert view.held == {"a": held("a", Tier.HOST), "c": held("c")}


async def test_a_full_report_replaces_what_an_earlier_life_held(redis_client: Redis) -> None:
    reader = MapReader(redis_client)
    reporter = MapReporter(redis_client, BASE, "e-0")
    await reporter.report(record(incarnation=1), [held("a")], [], full=True)
    assert not await reporter.report(record(incarnation=2), [held("b")], [], full=False)
    await reporter.report(record(incarnation=2), [held("b")], [], full=True)
    assert await reader.held(BASE, "e-0") == {"b": held("b")}


@pytest.mark.parametrize(
    ("older", "newer"),
    [(1, 2), (9, 10), (10**18, 10**18 + 1), (1_700_000_000_000_000_001, 1_700_000_000_000_000_002)],
)
async def test_an_earlier_start_cannot_speak_for_a_later_one(redis_client: Redis, older: int, newer: int) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    await reporter.report(record(incarnation=newer), [held("a")], [], full=True)
    for full in (True, False):
        with pytest.raises(StaleEpoch):
            await reporter.report(record(incarnation=older), [held("b")], [], full=full)
    (view,) = await reader.engines(BASE)
    assert (view.record, list(view.held)) == (record(incarnation=newer), ["a"])


async def test_a_start_whose_clock_was_put_back_is_heard_once_the_one_before_has_left(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    now = time.time_ns()
    await reporter.report(record(incarnation=now + 10**12), [held("a")], [], full=True)
    with pytest.raises(StaleEpoch):
        await reporter.report(record(incarnation=now), [held("b")], [], full=True)
    await reporter.leave()
    assert not await reporter.report(record(incarnation=now), [held("b")], [], full=False)
    assert await reporter.report(record(incarnation=now), [held("b")], [], full=True)
    assert await TrainReporter(redis_client, BASE, "e-0").report(now, (), (), {}, full=True) == ()
    (view,) = await reader.engines(BASE)
    assert (view.record, list(view.held)) == (record(incarnation=now), ["b"])


async def test_engines_do_not_touch_each_other(redis_client: Redis) -> None:
    reader = MapReader(redis_client)
    for name in ("e-0", "e-1"):
        await MapReporter(redis_client, BASE, name).report(record(name), [held(name)], [], full=True)
    await MapReporter(redis_client, BASE, "e-0").report(record("e-0", 2), [], [], full=True)
    assert [list(view.held) for view in await reader.engines(BASE)] == [[], ["e-1"]]


async def test_a_heartbeat_runs_out_and_a_goodbye_ends_it_at_once(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    await reporter.report(record(), [held("a")], [], full=True)
    left_ms = await redis_client.pttl(keys.engine(BASE, "e-0"))
    assert HEARTBEAT_TTL_S * 500 < left_ms <= HEARTBEAT_TTL_S * 1000
    await redis_client.pexpire(keys.engine(BASE, "e-0"), 1)  # as if so much time had passed
    async with asyncio.timeout(30):
        (view,) = await reader.engines(BASE)
        while view.record is not None:
            (view,) = await reader.engines(BASE)
    assert view.held == {"a": held("a")}
    await reporter.report(record(sequence=2), [], [], full=False)  # it was only slow
    assert (await reader.engines(BASE))[0].record == record(sequence=2)
    await reporter.leave()
    assert (await reader.engines(BASE))[0].record is None


async def test_a_failure_is_reported_with_its_reason(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    failed = Held("a", SOURCE, Tier.REMOTE, failure=Failure("CorruptFile", "truncated at 12", terminal=True))
    await reporter.report(record(), [failed], [], full=True)
    assert await reader.held(BASE, "e-0") == {"a": failed}


# Losing everything loses nothing.


async def test_one_record_of_another_version_hinders_no_other(redis_client: Redis) -> None:
    """As after a rollback: a residency that is not known here is the warmest that is."""
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
    assert not await reporter.report(record(), [], [], full=False)  # the engine is told that it was lost
    assert await reporter.report(record(), [held("a")], [], full=True)
    await write(writer, "a")
    assert list(await reader.placements(BASE)) == ["a"]
    with pytest.raises(StaleEpoch):
        await write(MapWriter(redis_client, epoch=4), "a")


async def test_forgetting_a_base_removes_all_of_it_but_the_fence(redis_client: Redis) -> None:
    writer = MapWriter(redis_client, epoch=1)
    await writer.apply(BASE, MapChange(base=BaseRecord(BASE), set_assigned={"e-0": (assignment("a"),)}))
    await MapReporter(redis_client, BASE, "e-0").report(record(), [held("a")], [], full=True)
    await writer.forget(BASE)
    await writer.forget(BASE)  # again changes nothing
    assert await redis_client.keys("*") == [keys.epoch(BASE)]


async def test_a_pulse_tells_whether_to_read_more(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=7), MapReader(redis_client)
    silent = await reader.pulse(BASE)
    assert (silent.version, silent.epoch, silent.engines) == (None, None, {})
    version = await write(writer, "a")
    for name in ("e-1", "e-0"):
        await MapReporter(redis_client, BASE, name).report(record(name), [], [], full=True)
    await MapReporter(redis_client, BASE, "e-1").leave()
    pulse = await reader.pulse(BASE)
    assert (pulse.version, pulse.epoch) == (version, 7)
    assert pulse.engines == {"e-0": record("e-0"), "e-1": None}


# Full memory takes nobody down.


@pytest.fixture
async def full_redis(redis_client: Redis) -> AsyncIterator[Redis]:
    """A Redis that holds a base and is then out of memory."""
    await write(MapWriter(redis_client, epoch=1), "a", "b")
    await MapReporter(redis_client, BASE, "e-0").report(record(), [held("a")], [], full=True)
    async with full_memory(redis_client):
        yield redis_client


async def test_where_memory_is_full_engines_live_and_changes_are_written(full_redis: Redis) -> None:
    reader, writer = MapReader(full_redis), MapWriter(full_redis, epoch=1)
    assert await MapReporter(full_redis, BASE, "e-0").report(record(sequence=2), [held("c")], ["a"], full=False)
    assert (await reader.pulse(BASE)).engines == {"e-0": record(sequence=2)}
    await writer.apply(BASE, MapChange(del_placements=("a",)))
    assert list(await reader.placements(BASE)) == ["b"]


async def test_where_memory_is_full_a_base_can_still_be_forgotten(full_redis: Redis) -> None:
    await MapWriter(full_redis, epoch=1).forget(BASE)
    assert await full_redis.keys("*") == [keys.epoch(BASE)]


def test_every_key_is_in_the_bases_hash_slot() -> None:
    made: Iterable[str] = (
        *(make(BASE) for make in (keys.epoch, keys.version, keys.base_record, keys.placements, keys.engines)),
        *(make(BASE, "e-0") for make in (keys.assigned, keys.engine, keys.held)),
        keys.changed(BASE),
    )
    assert {key[key.index("{") : key.index("}") + 1] for key in made} == {"{demo/smollm2}"}
    for key in made:
        shape = key.replace("e-0", "ENGINE").replace(BASE, "ns/name")
        assert f"| {shape} " in (keys.__doc__ or ""), f"{shape} is not in the table of keys"
