"""Engines' training reports on a real Redis: progress is fenced by incarnation, rewards by position and lease."""

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reporter import MapReporter
from mint_contracts.rewards import Rewards
from mint_contracts.step_figures import StepFigures
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_reporter import MissingRewards, TrainReporter
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Policy
from mint_contracts.training_records import Progress, Stage, TrainAssignment, TrainChange
from tests.engine_views import engine_record

BASE, ENGINE = "demo/smollm2", "e-0"


def progress(policy: str, step: int = 0) -> Progress:
    return Progress(policy, "demo/wave", 7, Stage.RUNNING, step=step, incarnation=5)


@pytest.fixture
async def reporter(redis_client: Redis) -> TrainReporter:
    await start(redis_client, 5)
    return TrainReporter(redis_client, BASE, ENGINE)


async def start(redis: Redis, incarnation: int) -> None:
    record = engine_record(ENGINE, incarnation=incarnation)
    await MapReporter(redis, BASE, ENGINE).report(record, (), (), full=True)


async def lease(redis: Redis, *policies: str, engine: str = ENGINE) -> None:
    leases = tuple(TrainAssignment(each, "demo/wave", 7, Policy(each)) for each in policies)
    await TrainWriter(redis, 1).apply(BASE, TrainChange(set_trains={engine: leases}))


async def test_progress_is_set_changed_deleted_and_replaced_as_a_whole(
    redis_client: Redis, reporter: TrainReporter
) -> None:
    reader, unsaid = TrainReader(redis_client), msgspec.structs.replace(progress("a"), incarnation=0)
    assert await reporter.report(5, [unsaid, progress("b")], (), {}, full=False) == MissingRewards()
    assert await reader.progress(BASE, [ENGINE]) == {ENGINE: {"a": progress("a"), "b": progress("b")}}
    await reporter.report(5, [progress("a", 1)], ["b"], {}, full=False)
    assert await reader.progress(BASE, [ENGINE]) == {ENGINE: {"a": progress("a", 1)}}
    await reporter.report(5, [progress("c")], (), {}, full=True)
    assert await reader.progress(BASE, [ENGINE]) == {ENGINE: {"c": progress("c")}}


async def test_rewards_are_told_by_position_so_that_telling_them_again_changes_nothing(
    redis_client: Redis, reporter: TrainReporter
) -> None:
    reader = TrainReader(redis_client)
    await lease(redis_client, "a")
    for _ in range(2):
        await reporter.report(5, (), (), {"a": (0, [0.1, 0.2])}, full=False)
        await reporter.report(5, (), (), {"a": (2, [1 / 3])}, full=False)
    assert await reader.rewards(BASE, {"a": 0}, 10) == {"a": Rewards(0, (0.1, 0.2, 1 / 3))}
    await reporter.report(5, (), (), {"a": (1, [0.5])}, full=False)
    assert await reader.rewards(BASE, {"a": 0}, 10) == {"a": Rewards(0, (0.1, 0.5))}


async def test_a_list_that_was_lost_is_asked_for_from_its_start(reporter: TrainReporter, redis_client: Redis) -> None:
    await lease(redis_client, "a", "b")
    lacking = await reporter.report(5, (), (), {"a": (0, [0.1]), "b": (3, [0.4])}, full=False)
    assert lacking == MissingRewards(short=("b",))
    rewards = await TrainReader(redis_client).rewards(BASE, {"a": 0, "b": 0}, 10)
    assert rewards == {"a": Rewards(0, (0.1,)), "b": Rewards()}


async def test_rewards_of_a_wave_that_is_gone_stay_gone(redis_client: Redis, reporter: TrainReporter) -> None:
    """Its engine may report a step before it has read that the wave is gone."""
    await lease(redis_client, "a", "b")
    await reporter.report(5, (), (), {"a": (0, [0.1]), "b": (0, [0.2])}, full=False)
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(del_trains={ENGINE: ("a",)}, del_rewards=("a",)))
    for first, full in ((1, False), (0, False), (0, True)):
        rewards = {"a": (first, [0.3]), "b": (1, [0.4])}
        assert await reporter.report(5, (), (), rewards, full=full) == MissingRewards(unleased=("a",))
    assert not await redis_client.exists(keys.rewards(BASE, "a"))
    assert await TrainReader(redis_client).rewards(BASE, {"b": 0}, 10) == {"b": Rewards(0, (0.2, 0.4))}


async def test_a_curve_is_replaced_as_a_whole_and_goes_with_its_wave(
    redis_client: Redis, reporter: TrainReporter
) -> None:
    reader, curve = TrainReader(redis_client), (StepFigures(1, kl=0.5), StepFigures(2, truncated=0.25))
    await lease(redis_client, "a")
    for told in (curve[:1], curve):
        await reporter.report(5, (), (), {"a": (0, [0.1])}, full=False, curves={"a": told})
        assert await reader.curves(BASE, ["a", "b"]) == {"a": told}
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(del_trains={ENGINE: ("a",)}, del_rewards=("a",)))
    lacking = await reporter.report(5, (), (), {"a": (0, [0.1])}, full=False, curves={"a": curve})
    assert lacking == MissingRewards(unleased=("a",))
    assert await reader.curves(BASE, ["a"]) == {}
    assert not await redis_client.exists(keys.curve(BASE, "a"))


async def test_another_engines_lease_is_none(redis_client: Redis, reporter: TrainReporter) -> None:
    await lease(redis_client, "a", engine="e-1")
    assert await reporter.report(5, (), (), {"a": (0, [0.1])}, full=False) == MissingRewards(unleased=("a",))
    assert not await redis_client.exists(keys.rewards(BASE, "a"))


async def test_only_the_newest_start_of_an_engine_is_heard(redis_client: Redis, reporter: TrainReporter) -> None:
    assert await reporter.report(6, [progress("a")], (), {}, full=True) is None
    await start(redis_client, 6)
    with pytest.raises(StaleEpoch):
        await reporter.report(5, [progress("a")], (), {}, full=False)
    assert await TrainReader(redis_client).progress(BASE, [ENGINE]) == {ENGINE: {}}


async def test_long_histories_are_read_from_where_they_are_known_to_in_pieces(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_contracts.train_reader.MOST_POINTS", 3)
    lists = {f"p{length}": [float(step) for step in range(length)] for length in (0, 1, 2, 3, 4, 11)}
    for name, values in lists.items():
        if values:
            await redis_client.rpush(keys.rewards(BASE, name), *values)
    for since in range(6):
        for most in (1, 4, 100):
            rewards = await TrainReader(redis_client).rewards(BASE, dict.fromkeys(lists, since), most)
            for name, values in lists.items():
                first = max(since if since <= len(values) else 0, len(values) - most)
                assert rewards[name] == Rewards(first, tuple(values[first:])), (name, since, most)
