"""A step that is taken is handed off, later if it must be, and never taken twice."""

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from mint_contracts.errors import (
    Draining,
    Internal,
    InvalidRequest,
    MintError,
    Overloaded,
    SourceUnavailable,
)
from mint_contracts.training import Optimizer
from mint_engine.policies.courses import keeping
from mint_engine.policies.updates.step_thread import StepThread
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from mint_engine.training.example import PolicyBatch
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import finish_all, saved_of, step_all
from tests.engine.training.scene import DAPO, groups, learn, trainer_with
from tests.waiting import until

OPTIMIZER = Optimizer(learning_rate=1e-2)


def test_a_step_that_is_taken_is_handed_off_once_that_can_be() -> None:
    """Nothing is learnt again for that: the policy has the same step as with an immediate hand-off."""
    trainer, other = trainer_with(1), trainer_with(1)
    updates, told, tried, waits = Updates(trainer), list[Learnt | MintError](), list[int](), list[float]()

    def later(wait_s: float, work: Callable[[], None]) -> None:
        assert trainer.policy("p/0").halfway
        waits.append(wait_s)
        work()

    def away_at_first(trainer: Trainer) -> None:
        tried.append(trainer.policy("p/0").step)
        if len(tried) < 3:
            raise SourceUnavailable("revision p/0@1.1", "could not be read by every rank; retrying")

    updates.later = later
    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, away_at_first, told.append))
    with capture_logs():
        finish_all(updates)
    assert tried == [1, 1, 1]
    assert 0 < waits[0] < waits[1]
    assert isinstance(told[0], Learnt)
    assert not trainer.policy("p/0").halfway
    learn(other, [PolicyBatch("p/0", groups(1), DAPO)])
    step_all(other, {"p/0": OPTIMIZER})
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


async def test_the_desk_has_the_step_thread_woken_when_it_is_time_to_hand_off_again() -> None:
    trainer, tried, woken = trainer_with(1), list[bool](), list[bool]()
    updates = Updates(trainer)
    step_thread = StepThread(updates, lambda: woken.append(True))

    def away_at_first(_: Trainer) -> None:
        tried.append(True)
        if len(tried) < 2:
            raise SourceUnavailable("slot", "lies on a disk that is away")

    def learnt() -> bool:
        finish_all(updates)
        return learning.done()

    learning = asyncio.create_task(
        step_thread.learn(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, finish=away_at_first)
    )
    with capture_logs():
        await until(learnt)
    assert (await learning).step is not None
    assert len(tried) == len(woken) == 2


async def test_a_hand_off_that_waits_to_be_made_again_hears_that_nobody_wants_it_any_more() -> None:
    trainer, tried = trainer_with(1), list[bool]()
    updates = Updates(trainer)
    step_thread = StepThread(updates, lambda: None)

    def away(_: Trainer) -> None:
        tried.append(True)
        raise SourceUnavailable("slot", "could not be told to every rank; retrying")

    def ended() -> bool:
        finish_all(updates)
        if tried:
            learning.cancel()
        return learning.done()

    learning = asyncio.create_task(step_thread.learn(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, finish=away))
    with capture_logs():
        await until(ended)
    assert learning.cancelled()
    assert len(tried) == 2, "the last when it is time for that"


def test_a_deferred_handoff_is_told_when_the_engine_ends_first() -> None:
    trainer = trainer_with(1)
    updates, told, postponed = Updates(trainer), list[Learnt | MintError](), list[Callable[[], None]]()

    def away(_: Trainer) -> None:
        raise SourceUnavailable("slot", "lies on a disk that is away")

    updates.later = lambda _, work: postponed.append(work)
    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, away, told.append))
    with capture_logs():
        finish_all(updates)
    assert told == []
    updates.close()
    (again,) = postponed
    again()
    (ended,) = told
    assert isinstance(ended, Draining)


@pytest.mark.parametrize(
    "error",
    [
        SourceUnavailable("slot", "lies on a disk that is away"),
        SourceUnavailable("slot", "lies on a disk that is away; retrying"),
        Overloaded("slot", "lies on a disk that is away; retry later"),
    ],
    ids=str,
)
def test_a_step_that_is_taken_and_not_handed_off_is_not_taken_again_nor_saved(error: MintError) -> None:
    trainer = trainer_with(1)
    updates, told = Updates(trainer), list[Learnt | MintError]()

    def away(_: Trainer) -> None:
        raise error

    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, away, told.append))
    finish_all(updates)
    assert isinstance(told[0], Internal), "to be tried again, it would be taken twice"
    assert told[0].message == "lies on a disk that is away; given up"
    assert trainer.policy("p/0").halfway
    with pytest.raises(InvalidRequest, match="in the middle of an update"):
        next(keeping._copying(trainer, "p/0"))
