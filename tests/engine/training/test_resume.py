"""An engine's process is killed in the middle of training; another goes on, and ends with the same numbers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import connect
from mint_contracts.source import Source
from mint_contracts.train_reader import TrainReader
from mint_contracts.training import Train
from mint_contracts.training_records import Progress, Stage, WaveTraining
from mint_engine.policies.checkpoints import Shelf
from mint_engine.policies.store import store_of
from tests.engine.pods import BASE, pod
from tests.engine.running import save_base
from tests.engine.training.teaching import WAVE, assignment, train
from tests.redis_process import RedisProcess
from tests.waiting import until

POLICIES = ("acme/one", "acme/two")


async def grant(redis: Redis, store: Source, told: Train, engine: str, lease: int) -> None:
    """What the operator writes to give an engine both policies, and to nobody else."""
    wave = WaveTraining(WAVE, 1, told, store)
    await redis.hset(keys.training(BASE), WAVE, msgspec.json.encode(wave))
    for each in (assignment(policy, lease) for policy in POLICIES):
        await redis.hset(keys.trains(BASE, engine), each.policy, msgspec.json.encode(each))
    await redis.incr(keys.version(BASE))
    await redis.hincrby(keys.editions(BASE), engine, 1)
    await redis.publish(keys.called(BASE, engine), "map")


async def finished(redis: Redis, engine: str) -> dict[str, Progress]:
    reader = TrainReader(redis)

    async def look() -> dict[str, Progress] | None:
        found = (await reader.progress(BASE, [engine]))[engine]
        for each in found.values():
            assert each.failure is None, each.failure
        return found if found and all(each.stage is Stage.COMPLETE for each in found.values()) else None

    return await until(look, 120)


def outcome(store: Source) -> dict[str, tuple[tuple[float, ...], bytes]]:
    found = {policy: Shelf(store_of(store), policy).newest() for policy in POLICIES}
    return {policy: (each[0].rewards, each[1]) for policy, each in found.items() if each is not None}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


async def test_after_a_kill_another_engine_ends_with_the_numbers_of_an_undisturbed_run(
    base: Path, tmp_path: Path
) -> None:
    source, told = Source(f"file://{base}"), train(steps=8, publish_every_steps=4)
    (tmp_path / "redis").mkdir()
    with RedisProcess(tmp_path / "redis") as process:
        redis = connect(process.url)
        calm, rough = Source(f"file://{tmp_path}/calm"), Source(f"file://{tmp_path}/rough")
        settings: dict[str, Any] = {"device_slots": 4}
        with pod(tmp_path, process, source, name="tiny-0", training_store=calm, **settings):
            await grant(redis, calm, told, "tiny-0", lease=1)
            told_calm = await finished(redis, "tiny-0")
            rewards = await TrainReader(redis).rewards(BASE, POLICIES, 100)
        assert {name: tuple(values) for name, values in rewards.items()} == {
            name: values for name, (values, _) in outcome(calm).items()
        }
        published = {name: each.published for name, each in told_calm.items()}
        assert [each.step for each in published.values() if each is not None] == [8, 8]

        await redis.flushall()
        with pod(tmp_path, process, source, name="tiny-1", training_store=rough, **settings) as first:
            await grant(redis, rough, told, "tiny-1", lease=1)
            await until(lambda: len(outcome(rough)) == len(POLICIES))
            first.process.kill()
        assert any(len(values) < 8 for values, _ in outcome(rough).values()), "killed before the end"
        with pod(tmp_path, process, source, name="tiny-2", training_store=rough, **settings):
            await grant(redis, rough, told, "tiny-2", lease=2)
            told_rough = await finished(redis, "tiny-2")
            again = await TrainReader(redis).rewards(BASE, POLICIES, 100)
        await redis.aclose()
    assert outcome(rough) == outcome(calm)
    assert again == rewards
    for name, each in told_rough.items():
        first_told, then_told = published[name], each.published
        assert first_told is not None
        assert then_told is not None
        assert then_told.revision == first_told.revision
