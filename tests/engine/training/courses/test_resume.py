"""An engine's process is killed during training; another engine resumes, and ends with the same numbers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts import keys, training_pb2, training_pb2_grpc
from mint_contracts.source import Source
from mint_contracts.train_reader import TrainReader
from mint_contracts.training import Reward, RewardService, Train
from mint_contracts.training_records import Progress, Stage, WaveTraining
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.store import store_of
from tests.engine.pods import BASE, Pod, pod
from tests.engine.training.training_engine import WAVE, assignment, train
from tests.redis_process import RedisProcess, patient
from tests.waiting import until

POLICIES = ("acme/one", "acme/two")
STEPS, KILLED_AT = 8, 4


async def grant(redis: Redis, store: Source, told: Train, engine: str, lease: int) -> None:
    """Write what the operator writes to assign both policies to this engine alone."""
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

    return await until(look)


def outcome(store: Source) -> dict[str, tuple[tuple[float, ...], bytes]]:
    found = {policy: Checkpoints(store_of(store), policy).newest() for policy in POLICIES}
    return {policy: (each[0].rewards, each[1]) for policy, each in found.items() if each is not None}


class Judge(training_pb2_grpc.RewardServicer):
    """A reward service that pays by length for the first `steps`, and does not answer for later ones."""

    def __init__(self) -> None:
        self.steps, self.address = STEPS, ""

    async def Score(  # noqa: N802 - the name is the proto's
        self, request: training_pb2.ScoreRequest, _context: object
    ) -> training_pb2.ScoreResponse:
        await until(lambda: request.step < self.steps)
        return training_pb2.ScoreResponse(rewards=[len(each.completion) for each in request.completions])


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    judge, server = Judge(), grpc.aio.server()
    training_pb2_grpc.add_RewardServicer_to_server(judge, server)
    judge.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield judge
    await server.stop(0)


def begun(engine: Pod) -> dict[str, int]:
    """Return the step at which an engine began to train each policy."""
    return {each["policy"]: each["step"] for each in engine.lines() if each["event"] == "training"}


async def test_after_a_kill_another_engine_ends_with_the_numbers_of_an_undisturbed_run(
    base: Path, judge: Judge, tmp_path: Path
) -> None:
    reward = Reward(service=RewardService(address=judge.address))
    source, told = Source(f"file://{base}"), train(steps=STEPS, publish_every_steps=4, reward=reward)
    for name in ("redis", "calm", "rough"):
        (tmp_path / name).mkdir()
    with RedisProcess(tmp_path / "redis") as process:
        redis = patient(process.url)
        calm, rough = Source(f"file://{tmp_path}/calm"), Source(f"file://{tmp_path}/rough")
        settings: dict[str, Any] = {"device_slots": 4}
        with pod(tmp_path, process, source, name="tiny-0", training_store=calm, **settings):
            await grant(redis, calm, told, "tiny-0", lease=1)
            told_calm = await finished(redis, "tiny-0")
            rewards = await TrainReader(redis).rewards(BASE, dict.fromkeys(POLICIES, 0), 100)
            curves = await TrainReader(redis).curves(BASE, POLICIES)
        assert {name: of.values for name, of in rewards.items()} == {
            name: values for name, (values, _) in outcome(calm).items()
        }
        published = {name: each.published for name, each in told_calm.items()}
        assert [each.step for each in published.values() if each is not None] == [STEPS, STEPS]
        assert [each.saved for each in told_calm.values()] == [STEPS, STEPS]
        assert [len(curve) for curve in curves.values()] == [STEPS, STEPS]

        await redis.flushall()
        with pod(tmp_path, process, source, name="tiny-1", training_store=rough, **settings) as first:
            judge.steps = KILLED_AT
            await grant(redis, rough, told, "tiny-1", lease=1)
            await until(lambda: [len(values) for values, _ in outcome(rough).values()] == [KILLED_AT] * 2)
            first.process.kill()
        judge.steps = STEPS
        with pod(tmp_path, process, source, name="tiny-2", training_store=rough, **settings) as second:
            await grant(redis, rough, told, "tiny-2", lease=2)
            told_rough = await finished(redis, "tiny-2")
            again = await TrainReader(redis).rewards(BASE, dict.fromkeys(POLICIES, 0), 100)
            assert await TrainReader(redis).curves(BASE, POLICIES) == curves
            assert begun(second) == dict.fromkeys(POLICIES, KILLED_AT)
        await redis.aclose()
    assert outcome(rough) == outcome(calm)
    assert again == rewards
    for name, each in told_rough.items():
        first_told, then_told = published[name], each.published
        assert first_told is not None
        assert then_told is not None
        assert then_told.revision == first_told.revision
