"""An engine reports everything it holds to the map in parts: each is taken once, none is read before the last."""

import pytest
from redis.asyncio import Redis

from mint_contracts import keys, map_reader, map_reporter
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import Tier
from tests.contracts.placed import BASE, held, outlive, record
from tests.engine_views import engine_views
from tests.redis_process import full_memory
from tests.waiting import until


@pytest.fixture(autouse=True)
def _strong_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep heartbeats and reports in parts alive until the test ends them, however long the machine stalls."""
    monkeypatch.setattr(map_reporter, "HEARTBEAT_TTL_S", 600.0)
    monkeypatch.setattr(map_reporter, "TELLING_TTL_S", 6000.0)


@pytest.fixture
def reporter(redis_client: Redis) -> MapReporter:
    return MapReporter(redis_client, BASE, "e-0")


@pytest.fixture
def reader(redis_client: Redis) -> MapReader:
    return MapReader(redis_client)


async def test_parts_of_a_report_are_not_read_before_it_is_complete(
    redis_client: Redis, reporter: MapReporter, reader: MapReader
) -> None:
    assert await reporter.tell(1, 1, [held("a"), held("b")], [], over=0)
    assert await reporter.tell(1, 2, [held("c"), held("a", Tier.HOST)], ["b"], over=1)
    assert await engine_views(reader, BASE) == []
    assert await reporter.report(record(sequence=3), [held("d")], ["c"], full=True, over=2)
    (view,) = await engine_views(reader, BASE)
    assert view.record == record(sequence=3)
    assert view.held == {"a": held("a", Tier.HOST), "d": held("d")}
    assert await redis_client.hlen(keys.held(BASE, "e-0")) == 2
    assert await redis_client.ttl(keys.held(BASE, "e-0")) == -1, "what is held does not expire"
    assert not await redis_client.exists(keys.telling(BASE, "e-0"))


async def test_a_full_report_in_parts_keeps_the_old_one_readable_and_the_heartbeat_alive(
    redis_client: Redis, reporter: MapReporter, reader: MapReader
) -> None:
    await reporter.report(record(), [held("a")], [], full=True)
    await redis_client.pexpire(keys.engine(BASE, "e-0"), 3_600_000)
    assert await reporter.tell(1, 2, [held("b")], [], over=0)
    assert await redis_client.pttl(keys.engine(BASE, "e-0")) <= map_reporter.HEARTBEAT_TTL_S * 1000
    (view,) = await engine_views(reader, BASE)
    assert (view.record, list(view.held)) == (record(), ["a"])
    assert await reporter.report(record(sequence=3), [], [], full=True, over=2)
    assert await reader.held(BASE, "e-0") == {"b": held("b")}


async def test_a_part_that_is_sent_again_is_acknowledged_and_changes_nothing(
    reporter: MapReporter, reader: MapReader
) -> None:
    for _ in range(2):
        assert await reporter.tell(1, 1, [held("a")], [], over=0)
    for _ in range(2):
        assert await reporter.tell(1, 2, [held("b")], ["a"], over=1)
    assert not await reporter.tell(1, 1, [held("a")], [], over=0), "it was carried out late: others came behind it"
    for _ in range(2):
        assert await reporter.report(record(sequence=3), [held("c")], [], full=True, over=2)
    assert sorted(await reader.held(BASE, "e-0")) == ["b", "c"]


async def test_a_part_is_refused_without_the_parts_before_it(
    redis_client: Redis, reporter: MapReporter, reader: MapReader
) -> None:
    assert not await reporter.tell(1, 2, [held("b")], [], over=1)
    assert await reporter.tell(1, 3, [held("a")], [], over=0)
    await redis_client.delete(keys.telling(BASE, "e-0"))
    assert not await reporter.tell(1, 4, [held("b")], [], over=3)
    assert not await reporter.report(record(sequence=4), [held("b")], [], full=True, over=3)
    assert await engine_views(reader, BASE) == []


async def test_changes_apply_once_to_the_report_they_were_made_for(reporter: MapReporter, reader: MapReader) -> None:
    await reporter.report(record(sequence=4), [held("a")], [], full=True)
    for _ in range(2):
        assert await reporter.report(record(sequence=5), [held("b")], ["a"], full=False, over=4)
    assert await reporter.report(record(sequence=6), [held("a", Tier.HOST)], [], full=False, over=5)
    # As if Redis had stalled, and executed only now calls that nobody waits for any more.
    assert not await reporter.report(record(sequence=5), [held("b")], ["a"], full=False, over=4)
    assert not await reporter.report(record(sequence=4), [held("a")], [], full=True)
    (view,) = await engine_views(reader, BASE)
    assert view.record == record(sequence=6)
    assert view.held == {"a": held("a", Tier.HOST), "b": held("b")}


async def test_a_report_tells_how_much_the_map_has_of_the_engine(redis_client: Redis, reporter: MapReporter) -> None:
    assert (await reporter.report(record(), [held("a"), held("b")], [], full=True)).held == 2
    await redis_client.hdel(keys.held(BASE, "e-0"), "a")
    assert (await reporter.report(record(), [], [], full=False, over=1)).held == 1


async def test_the_later_of_two_starts_that_report_at_once_is_heard(
    reporter: MapReporter, reader: MapReader, redis_client: Redis
) -> None:
    now = 1_764_000_000_000_000_001
    later = MapReporter(redis_client, BASE, "e-0")
    assert await reporter.tell(now, 1, [held("a")], [], over=0)
    assert await later.tell(now + 1, 1, [held("b")], [], over=0)
    with pytest.raises(StaleEpoch):
        await reporter.tell(now, 2, [held("c")], [], over=1)
    assert await later.report(record(incarnation=now + 1, sequence=2), [], [], full=True, over=1)
    with pytest.raises(StaleEpoch):
        await reporter.tell(now, 3, [held("a")], [], over=0)
    assert await reader.held(BASE, "e-0") == {"b": held("b")}


async def test_a_start_that_ended_while_reporting_blocks_others_no_longer_than_a_heartbeat(
    reporter: MapReporter, redis_client: Redis
) -> None:
    await reporter.tell(2, 1, [held("a")], [], over=0)
    left_ms = await redis_client.pttl(keys.telling(BASE, "e-0"))
    assert 0 < left_ms <= map_reporter.TELLING_TTL_S * 1000
    with pytest.raises(StaleEpoch):
        await reporter.tell(1, 1, [held("b")], [], over=0)
    await outlive(redis_client, BASE, "e-0")
    assert await reporter.tell(1, 1, [held("b")], [], over=0)


async def test_an_engine_counts_as_reporting_for_one_heartbeat_after_its_last_call(
    reporter: MapReporter, reader: MapReader, redis_client: Redis
) -> None:
    """This includes a call that repeats a part that is already there, as after a lost answer."""
    names = ["e-0", "e-1"]
    for _ in range(2):
        assert await reporter.tell(7, 1, [held("a")], [], over=0)
        assert await reader.telling(BASE, names) == {"e-0": 7}
        await outlive(redis_client, BASE, "e-0")
        assert await reader.telling(BASE, names) == {}
    assert await reporter.tell(7, 2, [held("b")], [], over=1), "what is there is gone on from all the same"
    assert await reader.telling(BASE, names) == {"e-0": 7}


async def test_engines_with_unreadable_marks_are_unknown_and_the_others_are_known(
    reader: MapReader, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds for more engines than are read in one call."""
    monkeypatch.setattr(map_reader, "PER_CALL", 3)
    names = [f"e-{number}" for number in range(7)]
    for number, name in enumerate(names):
        if name != "e-4":
            await MapReporter(redis_client, BASE, name).tell(number + 1, 1, [held("a")], [], over=0)
    for name, mark in (("e-1", "of another version"), ("e-2", ""), ("e-5", f"{'9' * 5000} 1")):
        await redis_client.hset(keys.telling(BASE, name), "", mark)
    assert await reader.telling(BASE, names) == {"e-0": 1, "e-3": 4, "e-6": 7}
    assert await reader.telling(BASE, []) == {}


@pytest.mark.parametrize("known", [False, True], ids=["the map had lost it", "the map has it"])
async def test_a_start_that_leaves_while_reporting_is_no_longer_reporting(
    redis_client: Redis, reader: MapReader, known: bool
) -> None:
    first, second = (MapReporter(redis_client, BASE, "e-0") for _ in range(2))
    if known:
        await second.report(record(incarnation=2), [held("a")], [], full=True)
    await second.tell(2, 2, [held("b")], [], over=0)
    with pytest.raises(StaleEpoch):
        await first.tell(1, 1, [held("c")], [], over=0)
    await first.leave()
    assert await reader.telling(BASE, ["e-0"]) == {"e-0": 2}, "an old start that ends late"
    async with reader.changes() as hint:
        await second.leave()
        assert await until(lambda: hint(1.0)) == "engine e-0"
    assert await reader.telling(BASE, ["e-0"]) == {}
    assert not await redis_client.exists(keys.engine(BASE, "e-0"))


@pytest.mark.parametrize("start", [2, 3], ids=["same start", "next start"])
async def test_a_partial_report_is_dropped_when_a_full_one_arrives_in_one_call(
    redis_client: Redis, reporter: MapReporter, start: int
) -> None:
    await reporter.tell(2, 1, [held("a")], [], over=0)
    assert await reporter.report(record(incarnation=start, sequence=2), [held("b")], [], full=True)
    assert not await redis_client.exists(keys.telling(BASE, "e-0"))


async def test_a_late_full_report_keeps_a_report_in_progress(reporter: MapReporter) -> None:
    """The full report was made earlier; the parts reported since then are newer."""
    await reporter.tell(2, 2, [held("a")], [], over=0)
    assert await reporter.report(record(incarnation=2, sequence=1), [held("b")], [], full=True)
    assert await reporter.tell(2, 3, [held("c")], [], over=2)


async def test_a_late_first_part_does_not_restart_a_finished_report(
    redis_client: Redis, reporter: MapReporter
) -> None:
    await reporter.tell(1, 1, [held("a")], [], over=0)
    assert await reporter.report(record(sequence=2), [held("b")], [], full=True, over=1)
    assert not await reporter.tell(1, 1, [held("a")], [], over=0)
    assert not await redis_client.exists(keys.telling(BASE, "e-0"))


async def test_where_memory_is_full_parts_are_taken(redis_client: Redis, reporter: MapReporter) -> None:
    await reporter.report(record(), [held("a")], [], full=True)
    async with full_memory(redis_client):
        assert await reporter.tell(1, 2, [held("b")], [], over=0)
        assert await reporter.report(record(sequence=3), [held("c")], [], full=True, over=2)
