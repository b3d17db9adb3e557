"""The placement map on a real Redis: readers see what was written once it is complete."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import OPS_PER_CALL, MapWriter
from mint_contracts.records import BaseRecord, MapChange, Tier, WaveRecord
from tests.contracts.placed import BASE, SOURCE, assignment, placement, record, write
from tests.waiting import until


async def test_every_record_comes_back_as_it_was_written(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    base = BaseRecord(BASE, store=SOURCE, device_slots=8)
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


async def test_records_of_waves_come_back_and_notify_nobody(redis_client: Redis) -> None:
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


async def test_a_change_that_does_not_complete_the_map_leaves_it_unknown_and_calls_none(
    redis_client: Redis,
) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    announced = MapChange(base=BaseRecord(BASE, device_slots=8), completes=False)
    over = await reader.state(BASE, [])
    async with reader.changes() as wait:
        await writer.apply(BASE, announced, over)
        state = await reader.state(BASE, [])
        assert (state.version, state.base, await reader.bases()) == (None, announced.base, [BASE])
        assert await writer.apply(BASE, MapChange(set_placements=(placement("a"),)), state) == 1
        assert await hints(wait, 1) == ["map"], "of the second change alone"


async def test_deleting_takes_away_what_is_named_and_nothing_else(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    await write(writer, "a", "b")
    await writer.apply(BASE, MapChange(set_assigned={"e-0": (assignment("a"), assignment("b"))}))
    await writer.apply(BASE, MapChange(del_placements=("a", "never"), del_assigned={"e-0": ("b",), "e-9": ("x",)}))
    assert list(await reader.placements(BASE)) == ["b"]
    assert list((await reader.part(BASE, "e-0")).assigned) == ["a"]


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
    assert len((await reader.part(BASE, "e-0")).assigned) == len(names)


async def test_a_change_that_broke_off_leaves_the_old_version(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=1), MapReader(redis_client)
    before = await write(writer, "first")
    await redis_client.set(keys.assigned(BASE, "e-0"), "no hash")  # this part fails, after the placements
    change = MapChange(set_placements=(placement("second"),), set_assigned={"e-0": (assignment("second"),)})
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await writer.apply(BASE, change)
    assert await reader.version(BASE) == before
    await redis_client.delete(keys.assigned(BASE, "e-0"))
    assert await writer.apply(BASE, change) == before + 1


async def test_hints_tell_of_changes_by_both_sides(redis_client: Redis) -> None:
    reader, writer = MapReader(redis_client), MapWriter(redis_client, epoch=1)
    async with reader.changes() as wait:
        await write(writer, "a")
        await MapReporter(redis_client, BASE, "e-0").report(record(), [], [], full=True)
        await writer.apply("demo/other", MapChange())
        assert await hints(wait, 3) == ["map", "engine e-0", "map"], "of every base"


async def hints(wait: Callable[[float], Awaitable[str | None]], count: int) -> list[str]:
    """Wait for `count` hints, and return them with any that follow shortly."""
    found: list[str] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += filter(None, [await wait(1.0)])
    while (hint := await wait(0.1)) is not None:
        found.append(hint)
    return found


async def test_a_pulse_tells_whether_to_read_more(redis_client: Redis) -> None:
    writer, reader = MapWriter(redis_client, epoch=7), MapReader(redis_client)
    silent = await reader.pulse(BASE)
    assert (silent.version, silent.epoch, silent.engines) == (None, None, {})
    version = await write(writer, "a")
    reporters = {name: MapReporter(redis_client, BASE, name) for name in ("e-1", "e-0")}
    for name, reporter in reporters.items():
        await reporter.report(record(name), [], [], full=True)
    await reporters["e-1"].leave()
    pulse = await reader.pulse(BASE)
    assert (pulse.version, pulse.epoch) == (version, 7)
    assert pulse.engines == {"e-0": record("e-0"), "e-1": None}


def test_every_key_is_in_the_bases_hash_slot() -> None:
    made: Iterable[str] = (
        *(
            make(BASE)
            for make in (keys.epoch, keys.version, keys.base_record, keys.placements, keys.engines, keys.told)
        ),
        keys.writing(BASE),
        keys.recent(BASE),
        *(make(BASE, "e-0") for make in (keys.assigned, keys.engine, keys.held, keys.held_recently, keys.telling)),
        keys.changed(BASE),
    )
    assert {key[key.index("{") : key.index("}") + 1] for key in made} == {"{demo/smollm2}"}
    for key in made:
        shape = key.replace("e-0", "ENGINE").replace(BASE, "ns/name")
        assert f"| {shape} " in (keys.__doc__ or ""), f"{shape} is not in the table of keys"
