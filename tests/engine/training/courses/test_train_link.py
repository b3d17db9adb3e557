"""An engine's rewards in the map: reported again after a loss, and never for a policy without a lease in the map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts import functions, keys, train_reporter
from mint_contracts.map_reporter import MapReporter
from mint_contracts.source import Source
from mint_contracts.step_figures import Curve, StepFigures
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import TrainAssignment, TrainChange, WaveTraining
from mint_engine.train_link import TrainBody, TrainLink
from tests.engine_views import engine_record

BASE, ENGINE, POLICY = "demo/smollm2", "e-0", "demo/p"


@dataclass
class Trainer:
    """An engine that trains the policies whose leases it has read, with the given `rewards`, and curves of steps."""

    redis: Redis
    rewards: dict[str, Sequence[float]] = field(default_factory=dict)
    evaluation: float | None = None
    waves: Mapping[str, WaveTraining] = field(default_factory=dict)

    def __post_init__(self) -> None:
        body = TrainBody(self._want, lambda: None, dict, lambda: self.rewards, self.curves)
        self.link = TrainLink(self.redis, BASE, ENGINE, body)

    def _want(self, waves: Mapping[str, WaveTraining], leases: Mapping[str, TrainAssignment]) -> None:
        self.waves = waves
        self.rewards = {policy: values for policy, values in self.rewards.items() if policy in leases}

    def curves(self) -> dict[str, Curve]:
        steps = {policy: range(1, len(of) + 1) for policy, of in self.rewards.items()}
        return {p: tuple(StepFigures(step, evaluation=self.evaluation) for step in of) for p, of in steps.items()}

    async def begin(self) -> None:
        """Report the engine's own record, as at its start and after a loss of the map."""
        await MapReporter(self.redis, BASE, ENGINE).report(engine_record(ENGINE), (), (), full=True)
        await self.link.report(1, full=True)

    async def told(self) -> list[float]:
        """Report once more, and return the rewards that the map then has, and a curve of as many steps."""
        await self.link.report(1, full=False)
        reader = TrainReader(self.redis)
        values = (await reader.rewards(BASE, {POLICY: 0}, 100))[POLICY].values
        assert len((await reader.curves(BASE, [POLICY])).get(POLICY, ())) == len(values)
        return list(values)


@pytest.fixture
async def trainer(redis_client: Redis) -> Trainer:
    """A trainer that has reported two steps."""
    trainer = Trainer(redis_client)
    await lease(redis_client)
    await trainer.begin()
    await trainer.link.pull()
    trainer.rewards = {POLICY: [0.1, 0.2]}
    assert await trainer.told() == [0.1, 0.2]
    return trainer


async def lease(redis: Redis) -> None:
    leases = (TrainAssignment(POLICY, "demo/w", 7, Policy(POLICY)),)
    await TrainWriter(redis, 1).apply(BASE, TrainChange(set_trains={ENGINE: leases}))


async def end(redis: Redis) -> None:
    gone = TrainChange(del_training=("demo/w",), del_trains={ENGINE: (POLICY,)}, del_rewards=(POLICY,))
    await TrainWriter(redis, 1).apply(BASE, gone)


async def test_an_engine_reads_the_waves_of_its_leases_and_no_others(redis_client: Redis, trainer: Trainer) -> None:
    waves = [WaveTraining(f"demo/{name}", 1, Train(Policies()), Source("s3://runs")) for name in "vwx"]
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(set_training=tuple(waves)))
    await trainer.link.pull()
    assert trainer.waves == {"demo/w": waves[1]}


async def test_what_is_evaluated_between_steps_is_reported_without_a_new_reward(
    redis_client: Redis, trainer: Trainer
) -> None:
    trainer.evaluation = 0.75
    assert await trainer.told() == [0.1, 0.2]
    [*_, last] = (await TrainReader(redis_client).curves(BASE, [POLICY]))[POLICY]
    assert last == StepFigures(2, evaluation=0.75)


async def test_a_step_that_ends_after_its_wave_was_deleted_leaves_nothing(
    redis_client: Redis, trainer: Trainer
) -> None:
    await end(redis_client)
    trainer.rewards = {POLICY: [0.1, 0.2, 0.3]}
    assert await trainer.told() == []
    await trainer.link.pull()
    assert await trainer.told() == []
    assert not await redis_client.exists(keys.rewards(BASE, POLICY))


async def test_after_a_loss_rewards_come_back_with_their_lease_though_no_step_ends(
    redis_client: Redis, trainer: Trainer
) -> None:
    await redis_client.flushall()
    await trainer.begin()
    assert await trainer.told() == [], "before the operator has written the lease again"
    await lease(redis_client)
    assert await trainer.told() == [], "not with every heartbeat: leases are read when they have changed"
    await trainer.link.pull()
    assert await trainer.told() == [0.1, 0.2]


async def test_a_step_that_ends_before_the_lease_was_read_again_brings_back_all(
    redis_client: Redis, trainer: Trainer
) -> None:
    await redis_client.flushall()
    await trainer.begin()
    await lease(redis_client)
    trainer.rewards = {POLICY: [0.1, 0.2, 0.3]}
    assert await trainer.told() == [0.1, 0.2, 0.3]


async def test_a_lease_that_is_read_while_a_report_is_on_its_way_counts(
    redis_client: Redis, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis_client.flushall()

    async def slow(*args: Any) -> Any:
        answer = await functions.call(*args)
        await lease(redis_client)
        await trainer.link.pull()
        return answer

    monkeypatch.setattr(train_reporter, "call", slow)
    await trainer.begin()
    assert await trainer.told() == [0.1, 0.2]
