"""What engines report to the map: each only for itself, first a full report, as long as it sends heartbeats."""

import asyncio
import time

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import HEARTBEAT_TTL_S, MapReporter
from mint_contracts.records import Failure, Held, Tier
from mint_contracts.train_reporter import MissingRewards, TrainReporter
from tests.contracts.placed import BASE, SOURCE, held, record
from tests.engine_views import engine_views


async def test_a_full_report_is_needed_first_and_then_differences_do(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    assert not await reporter.report(record(), [held("a")], [], full=False)
    assert await engine_views(reader, BASE) == []
    assert await reporter.report(record(), [held("a"), held("b")], [], full=True)
    assert await reporter.report(record(sequence=2), [held("c"), held("a", Tier.HOST)], ["b"], full=False, over=1)
    (view,) = await engine_views(reader, BASE)
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
    (view,) = await engine_views(reader, BASE)
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
    assert await TrainReporter(redis_client, BASE, "e-0").report(now, (), (), {}, full=True) == MissingRewards()
    (view,) = await engine_views(reader, BASE)
    assert (view.record, list(view.held)) == (record(incarnation=now), ["b"])


async def test_an_old_start_that_ends_late_leaves_the_heart_of_the_next_one_beating(redis_client: Redis) -> None:
    first, second, reader = *(MapReporter(redis_client, BASE, "e-0") for _ in range(2)), MapReader(redis_client)
    await first.report(record(incarnation=1), [held("a")], [], full=True)
    await second.report(record(incarnation=2), [held("a")], [], full=True)
    await first.leave()
    assert (await reader.pulse(BASE)).engines == {"e-0": record(incarnation=2)}
    await second.leave()
    assert (await reader.pulse(BASE)).engines == {"e-0": None}


async def test_engines_do_not_touch_each_other(redis_client: Redis) -> None:
    reader = MapReader(redis_client)
    for name in ("e-0", "e-1"):
        await MapReporter(redis_client, BASE, name).report(record(name), [held(name)], [], full=True)
    await MapReporter(redis_client, BASE, "e-0").report(record("e-0", 2), [], [], full=True)
    assert [list(view.held) for view in await engine_views(reader, BASE)] == [[], ["e-1"]]


async def test_a_heartbeat_runs_out_and_a_goodbye_ends_it_at_once(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    await reporter.report(record(), [held("a")], [], full=True)
    left_ms = await redis_client.pttl(keys.engine(BASE, "e-0"))
    assert 0 < left_ms <= HEARTBEAT_TTL_S * 1000
    await redis_client.pexpire(keys.engine(BASE, "e-0"), 1)  # as if its lifetime had passed
    async with asyncio.timeout(60):
        (view,) = await engine_views(reader, BASE)
        while view.record is not None:
            (view,) = await engine_views(reader, BASE)
    assert view.held == {"a": held("a")}
    await reporter.report(record(sequence=2), [], [], full=False, over=1)  # it was only slow
    assert (await engine_views(reader, BASE))[0].record == record(sequence=2)
    await reporter.leave()
    assert (await engine_views(reader, BASE))[0].record is None


async def test_a_failure_is_reported_with_its_reason(redis_client: Redis) -> None:
    reporter, reader = MapReporter(redis_client, BASE, "e-0"), MapReader(redis_client)
    failed = Held("a", SOURCE, Tier.REMOTE, failure=Failure("CorruptFile", "truncated at 12", terminal=True))
    await reporter.report(record(), [failed], [], full=True)
    assert await reader.held(BASE, "e-0") == {"a": failed}
