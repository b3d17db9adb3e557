"""What the operator remembers of the placement map between looks, over a real Redis."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, Held, MapChange, Place, Placement, Tier
from mint_contracts.source import Source
from mint_operator.observing import map_view
from mint_operator.observing.dirt import EVERYTHING, RESYNC, Dirt, Part
from mint_operator.observing.map_view import MapView
from mint_operator.planning.engines import AWAY_GRACE_S
from mint_operator.planning.sizes import Size
from tests.contracts.placed import held, outlive, record
from tests.operator.stage import PlayedEngine
from tests.redis_process import RedisProcess, patient

KEY = "team/smol"
PLACEMENT = Placement("a/b", Source(uri="pvc://s/b"), ("team/w",), (Place("smol-0", Tier.DEVICE, "drawn"),))


class Clock:
    """A clock that moves only when the test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def seen_by(clock: Clock, redis: Redis) -> MapView:
    """Return the map as the first operator sees it."""
    return MapView(MapReader(redis), MapWriter(redis, 1), clock=clock)


async def test_an_engine_is_away_since_its_last_heartbeat_or_since_it_was_wanted(redis_client: Redis) -> None:
    clock = Clock()
    view = seen_by(clock, redis_client)
    engine = PlayedEngine(redis_client, KEY, "smol-0")
    await engine.report()
    engines = {KEY: ["smol-0", "smol-1"]}
    assert (await view.look(engines))[KEY].away_s == {"smol-1": 0.0}
    clock.now += 20
    await engine.leave()
    assert (await view.look(engines))[KEY].away_s == {"smol-0": 20.0, "smol-1": 20.0}
    clock.now += 5
    await engine.report()
    assert (await view.look(engines))[KEY].away_s == {"smol-1": 25.0}
    clock.now += 5
    assert (await view.look({KEY: ["smol-0"]}))[KEY].away_s == {}
    assert (await view.look(engines))[KEY].away_s == {"smol-1": 0.0}


async def test_an_engine_whose_next_start_reports_is_not_away_and_not_ready_before_it_says_so(
    redis_client: Redis,
) -> None:
    clock = Clock()
    view = seen_by(clock, redis_client)
    other = PlayedEngine(redis_client, KEY, "smol-1")
    await PlayedEngine(redis_client, KEY, "smol-0").report()
    await other.report()
    engines = {KEY: ["smol-0", "smol-1"]}
    assert (await view.look(engines))[KEY].unready_s == {}
    await other.leave()
    found = (await view.look(engines))[KEY]
    assert (found.away_s, found.unready_s) == ({"smol-1": 0.0}, {"smol-1": 0.0})
    clock.now += 20
    again = PlayedEngine(redis_client, KEY, "smol-1", incarnation=2)
    await again.report(ready=False)
    found = (await view.look(engines))[KEY]
    assert (found.away_s, found.unready_s) == ({}, {"smol-1": 20.0})
    await again.report()
    assert (await view.look(engines))[KEY].unready_s == {}


@pytest.mark.parametrize("outage", ["away", "full"])
async def test_while_redis_takes_no_heartbeats_no_time_counts_as_an_engines(tmp_path: Path, outage: str) -> None:
    """When Redis is back, engines report one after another: nothing is moved from those that come later."""
    clock = Clock()
    with RedisProcess(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as process:
        redis = patient(process.url)
        view, engines = seen_by(clock, redis), {KEY: ["smol-0", "smol-1"]}
        for name in engines[KEY]:
            await PlayedEngine(redis, KEY, name).report()
        assert (await view.look(engines))[KEY].away_s == {}
        await redis.delete(keys.engine(KEY, "smol-0"), keys.engine(KEY, "smol-1"))  # as if their time had passed
        if outage == "away":
            process.kill()
        else:
            await redis.config_set("min-replicas-to-write", 1)
        clock.now += 40
        with pytest.raises(MapUnavailable):
            await view.look(engines)
        clock.now += 40
        if outage == "away":
            process.start()
        else:
            await redis.config_set("min-replicas-to-write", 0)
        await PlayedEngine(redis, KEY, "smol-0").report()
        found = (await view.look(engines))[KEY]
        assert (found.away_s, found.unready_s) == ({"smol-1": 0.0}, {"smol-1": 0.0})
        await redis.aclose()


async def test_an_engine_that_is_silent_once_the_operator_looks_again_may_still_report(redis_client: Redis) -> None:
    """While the API server is away, nobody looks; a Redis that was restarted meanwhile has lost heartbeats."""
    clock = Clock()
    view, engines = seen_by(clock, redis_client), {KEY: ["smol-0", "smol-1"]}
    played = [PlayedEngine(redis_client, KEY, name) for name in engines[KEY]]
    for engine in played:
        await engine.report()
    await view.look(engines)
    await played[1].leave()
    clock.now += 300
    assert (await view.look(engines))[KEY].away_s == {"smol-1": map_view.MOST_UNSEEN_S}
    assert map_view.MOST_UNSEEN_S < AWAY_GRACE_S
    clock.now += 300
    assert (await view.look(engines))[KEY].away_s == {"smol-1": 2 * map_view.MOST_UNSEEN_S}


async def test_a_dead_engines_absence_adds_up_although_redis_is_away_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    with RedisProcess(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as process:
        redis = patient(process.url)
        view, engines = seen_by(clock, redis), {KEY: ["smol-0", "smol-1"]}
        await PlayedEngine(redis, KEY, "smol-0").report()
        await redis.persist(keys.engine(KEY, "smol-0"))
        assert (await view.look(engines))[KEY].away_s == {"smol-1": 0.0}
        for times in (1, 2):
            clock.now += 10
            assert (await view.look(engines))[KEY].away_s == {"smol-1": times * 10.0}
            process.kill()
            for _ in range(2):
                clock.now += 40
                with pytest.raises(MapUnavailable):
                    await view.look(engines)
            process.start()
            clock.now += 40
            found = (await view.look(engines))[KEY]
            assert (found.away_s, found.unready_s) == ({"smol-1": times * 10.0},) * 2
        await redis.aclose()


@pytest.mark.parametrize("leaves", [False, True], ids=["it dies", "it leaves"])
async def test_an_engine_that_tells_a_map_that_lost_it_what_it_holds_is_not_away(
    redis_client: Redis, leaves: bool
) -> None:
    clock = Clock()
    view = seen_by(clock, redis_client)
    engine = PlayedEngine(redis_client, KEY, "smol-0")
    await engine.report()
    engines = {KEY: ["smol-0", "smol-1"]}
    await view.look(engines)
    await redis_client.flushall()
    clock.now += 20
    await MapReporter(redis_client, KEY, "smol-0").tell(1, 9, [], [], over=0)
    found = (await view.look(engines))[KEY]
    assert (found.away_s, found.engines) == ({"smol-1": 20.0}, ())
    await (engine.leave() if leaves else outlive(redis_client, KEY, "smol-0"))
    clock.now += 5
    assert (await view.look(engines))[KEY].away_s == {"smol-0": 5.0, "smol-1": 25.0}


async def test_placements_are_remembered_when_the_map_is_lost(redis_client: Redis) -> None:
    clock = Clock()
    view = seen_by(clock, redis_client)
    await MapWriter(redis_client, 1).apply(KEY, MapChange(base=BaseRecord(KEY), set_placements=(PLACEMENT,)))
    assert (await view.look({KEY: []}))[KEY].lost_s == 0.0
    await redis_client.flushall()
    await view.look({KEY: []})
    clock.now += 3
    found = (await view.look({KEY: []}))[KEY]
    assert (found.state.version, found.state.placements, found.lost_s) == (None, {}, 3.0)
    assert found.remembered == {"a/b": PLACEMENT}


async def test_changes_by_others_are_seen_and_unchanged_records_are_not_read_again(redis_client: Redis) -> None:
    view = seen_by(Clock(), redis_client)
    writer = MapWriter(redis_client, 1)
    await writer.apply(KEY, MapChange(base=BaseRecord(KEY)))
    first = (await view.look({KEY: []}))[KEY].state
    assert (await view.look({KEY: []}))[KEY].state is first
    await writer.apply(KEY, MapChange(set_placements=(PLACEMENT,)))
    assert (await view.look({KEY: []}))[KEY].state.placements == {"a/b": PLACEMENT}


async def test_of_what_engines_hold_only_what_changed_is_read_again(redis_client: Redis) -> None:
    view, reporter = seen_by(Clock(), redis_client), MapReporter(redis_client, KEY, "smol-0")
    await reporter.report(record("smol-0"), [held("a"), held("b")], [], full=True)
    await view.look({KEY: ["smol-0"]})
    before = (await redis_client.info("commandstats"))["cmdstat_hgetall"]["calls"]
    await reporter.report(record("smol-0", sequence=2), [held("c")], ["a"], full=False, over=1)
    [found] = (await view.look({KEY: ["smol-0"]}))[KEY].engines
    assert (found.record, found.held) == (record("smol-0", sequence=2), {"b": held("b"), "c": held("c")})
    assert (await redis_client.info("commandstats"))["cmdstat_hgetall"]["calls"] == before


async def test_bases_of_other_namespaces_are_left_to_other_operators(redis_client: Redis) -> None:
    writer = MapWriter(redis_client, 1)
    for key in (KEY, "others/smol"):
        await writer.apply(key, MapChange(base=BaseRecord(key)))
    newer = MapWriter(redis_client, 2)
    assert sorted(await MapView(MapReader(redis_client), newer, ["team"]).look({})) == [KEY]
    await writer.apply("others/smol", MapChange(set_placements=(PLACEMENT,)))
    assert sorted(await MapView(MapReader(redis_client), newer).look({})) == ["others/smol", KEY]
    with pytest.raises(StaleEpoch):
        await writer.apply("others/smol", MapChange(del_placements=("a/b",)))


async def test_a_base_of_which_something_cannot_be_read_hinders_no_other(redis_client: Redis) -> None:
    view, names = seen_by(Clock(), redis_client), {KEY: ["smol-0"], "team/other": ["other-0"]}
    engines = [PlayedEngine(redis_client, key, name) for key, (name,) in names.items()]
    for engine in engines:
        await engine.report()
    assert sorted(await view.look(names)) == sorted(names)
    await redis_client.set(keys.engine(KEY, "smol-0"), '{"engine": "smol-0", "ready": "nearly"}')
    for _ in range(2):
        assert list(await view.look(names)) == ["team/other"]
    await engines[0].report()
    found = await view.look(names)
    assert [found[each].engines[0].engine for each in names] == ["smol-0", "other-0"]


async def test_dirt_gathers_marks_from_any_thread_beside_what_was_noted() -> None:
    dirt = Dirt(resync_s=60.0)
    assert await dirt.take() == EVERYTHING  # the first look is at everything
    dirt.note(Part.PODS)
    await asyncio.to_thread(dirt.mark, Part.WAVES)
    dirt.mark(Part.MAP)
    assert await dirt.take() == {Part.PODS, Part.WAVES, Part.MAP}


async def test_dirt_resyncs_without_any_mark() -> None:
    dirt = Dirt(resync_s=0.01)
    await dirt.take()
    assert await dirt.take() == RESYNC


async def test_dirt_resyncs_in_time_however_often_something_is_marked() -> None:
    dirt, looks = Dirt(resync_s=0.5), 0
    await dirt.take()
    dirt.mark(Part.MAP)
    while not await dirt.take() >= RESYNC:
        looks += 1
        dirt.mark(Part.MAP)
    assert looks <= 10  # at most one every debounce of 0.05 s


async def test_a_changed_object_does_not_wait_for_reports_to_gather(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mint_operator.observing.dirt.DEBOUNCE_S", 3600.0)
    monkeypatch.setattr("mint_operator.observing.dirt.MOST_DEBOUNCE_S", 3600.0)
    monkeypatch.setattr("mint_operator.observing.dirt.MAP_READ_EVERY_S", 3600.0)
    dirt = Dirt(resync_s=3600.0)
    assert await dirt.take() == EVERYTHING
    dirt.mark(Part.MAP)
    taking = asyncio.create_task(dirt.take())
    dirt.wake()
    async with asyncio.timeout(60):
        assert await taking == {Part.MAP}


async def test_dirt_marks_deferred_parts_at_the_earliest_time_requested() -> None:
    dirt = Dirt(resync_s=60.0)
    await dirt.take()
    for after_s in (50.0, 0.05, 40.0):
        dirt.mark_in(Part.BASES, after_s)
    async with asyncio.timeout(60):
        assert await dirt.take() == {Part.BASES}


async def test_sizes_of_what_only_passed_through_an_engine_are_forgotten_in_time(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_view, "MOST_SIZES", 4)
    view, engine = seen_by(Clock(), redis_client), PlayedEngine(redis_client, KEY, "smol-0")
    await MapWriter(redis_client, 1).apply(KEY, MapChange(base=BaseRecord(KEY), set_placements=(PLACEMENT,)))
    for number, name in enumerate(["a/b", *[f"c/{index}" for index in range(20)]]):
        held = Held(name, Source(uri=f"s3://c/{name}"), Tier.DISK, rank=8, bytes=number + 1)
        engine.holds = {name: held, "x/y": Held("x/y", held.source, Tier.HOST, rank=4)}
        await engine.report()
        sizes = (await view.look({KEY: ["smol-0"]}))[KEY].sizes
        assert len(sizes) <= 6
        assert sizes[name] == Size(8, number + 1)
    assert (sizes["a/b"], sizes["x/y"]) == (Size(8, 1), Size(4)), "of what is placed or held they are kept"


async def test_demand_is_summed_over_engines_and_fades_after_one_that_died(redis_client: Redis) -> None:
    clock = Clock()
    view = seen_by(clock, redis_client)
    engines = [PlayedEngine(redis_client, KEY, f"smol-{ordinal}") for ordinal in range(2)]
    for engine, demand in zip(engines, ({"a": 41.0, "b": 1.1}, {"a": 25.0}), strict=True):
        await engine.report(demand=demand)
    names = {KEY: ["smol-0", "smol-1"]}
    clock.now += 1000
    assert (await view.look(names))[KEY].demand == {"a": 64.0, "b": 1.0}
    await engines[0].leave()
    clock.now += 30
    faded = (await view.look(names))[KEY].demand
    assert faded["a"] == 32.0  # on its way from 66 to 25
    assert 0 < faded["b"] < 1
    clock.now += 1000
    assert (await view.look(names))[KEY].demand == {"a": 22.63}
