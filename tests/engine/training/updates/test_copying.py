"""A policy is copied for saving and publishing in bounded parts, and the engine decodes between the parts."""

import asyncio
import itertools
from collections.abc import Awaitable
from typing import TypeVar

import pytest
import torch

from mint_contracts.errors import Internal
from mint_engine.policies.updates.copying import copying, packing
from mint_engine.policies.updates.step_thread import StepThread
from mint_engine.policies.updates.updates import Updates
from mint_engine.training import policy as vectors
from mint_engine.training import state
from mint_engine.training.example import PolicyBatch
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import saved_of, step_all
from tests.engine.training.scene import DAPO, OPTIMIZER, groups, learn, trainer_with

T = TypeVar("T")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A trainer whose policy has a gradient and consists of many parts."""
    monkeypatch.setattr(vectors, "SPAN", 1 << 11)
    trainer = trainer_with(1)
    learn(trainer, [PolicyBatch("p/0", groups(1), DAPO)])
    step_all(trainer, {"p/0": OPTIMIZER})
    learn(trainer, [PolicyBatch("p/0", groups(2), DAPO)])
    return trainer


class Serving:
    """An engine that runs a step for its tenants after each piece."""

    def __init__(self, trainer: Trainer) -> None:
        ticks = itertools.count()
        self.updates = Updates(trainer, clock=lambda: next(ticks) * 0.003)
        self.step_thread = StepThread(self.updates, lambda: None)
        self.steps = 0

    def step(self) -> None:
        self.updates.advance(16, 0.01)
        self.steps += 1

    async def until(self, work: Awaitable[T]) -> T:
        answer = asyncio.ensure_future(work)
        while not answer.done():
            await asyncio.sleep(0)
            if self.updates.busy:
                self.step()
        return answer.result()


async def test_a_checkpoint_and_a_revision_are_those_of_one_moment_though_steps_pass(trainer: Trainer) -> None:
    serving, parts = Serving(trainer), trainer.policy("p/0").weights.numel() >> 11
    copy = await serving.until(serving.step_thread.parts(lambda trainer: copying(trainer, "p/0")))
    assert serving.steps >= 4 * parts, "a part is of one vector"
    assert state.to_bytes(copy) == saved_of(trainer, "p/0")
    serving.steps = 0
    packed = await serving.until(serving.step_thread.parts(lambda trainer: packing(trainer, "p/0", torch.bfloat16)))
    assert serving.steps > parts
    assert torch.equal(packed.run, trainer.policy("p/0").weights.to(torch.bfloat16))
    step_all(trainer, {"p/0": OPTIMIZER})
    assert copy.step == trainer.policy("p/0").step - 1
    assert not torch.equal(copy.weights, trainer.policy("p/0").weights)


async def test_a_policy_that_changes_while_it_is_copied_is_not_saved_half_and_half(trainer: Trainer) -> None:
    serving = Serving(trainer)
    copying_it = asyncio.ensure_future(serving.step_thread.parts(lambda trainer: copying(trainer, "p/0")))
    for _ in range(3):
        await asyncio.sleep(0)
        serving.step()
    step_all(trainer, {"p/0": OPTIMIZER})
    with pytest.raises(Internal, match="has changed while it was copied"):
        await serving.until(copying_it)
