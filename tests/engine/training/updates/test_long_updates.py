"""A long update takes turns with others: they need not wait for its end, and until then its policy is unchanged."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import Draining, MintError, Overloaded
from mint_contracts.training import Optimizer
from mint_engine.policies.updates import updates as update
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from mint_engine.training import work as works
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.pieces import plan_pieces
from mint_engine.training.trainer import Trainer
from tests.engine.running import save_base
from tests.engine.training.at_once import finish_all, saved_of, step_all
from tests.engine.training.calling import called, lesson, refused
from tests.engine.training.scene import DAPO, groups, learn, trainer_with

OPTIMIZER = Optimizer(learning_rate=1e-2)
PIECE_ROWS, TURN_ROWS = 48, 100
LONG = [example for number in range(6) for example in groups(number)]
SHORT = groups(40, prompts=1)
Told = list[Learnt | MintError]


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use very short pieces and turns, so that even a small update takes many."""
    monkeypatch.setattr(works, "PIECE_ROWS", PIECE_ROWS)
    monkeypatch.setattr(works, "plan_pieces", partial(plan_pieces, most=PIECE_ROWS))
    monkeypatch.setattr(update, "TURN_ROWS", TURN_ROWS)


def put(
    updates: Updates, name: str, examples: Sequence[Example], optimizer: Optimizer | None = OPTIMIZER, epochs: int = 1
) -> Told:
    told: Told = []
    updates.put(Job(PolicyBatch(name, examples, DAPO), optimizer, lambda _: None, told.append, epochs))
    return told


def after_turns(updates: Updates, turns: int) -> None:
    """Advance until `turns` turns are computed and the next one has begun."""
    end, left = updates._end, [turns]

    def counted(work: works.Work) -> None:
        left[0] -= 1
        end(work)

    updates._end = counted  # type: ignore[method-assign]
    while left[0] or updates._work is None:
        updates._piece()
    updates._end = end  # type: ignore[method-assign]
    updates._piece()


def learnt_alone(name: str, examples: Sequence[Example]) -> bytes:
    """Return the saved policy after one undivided update on a trainer of its own."""
    trainer = trainer_with(4)
    learn(trainer, [PolicyBatch(name, examples, DAPO)])
    step_all(trainer, {name: OPTIMIZER})
    return saved_of(trainer, name)


def test_a_short_update_ends_before_a_long_one_that_came_earlier() -> None:
    trainer = trainer_with(2)
    updates, ended = Updates(trainer), list[str]()
    for name, examples in {"p/0": LONG, "p/1": SHORT}.items():
        batch = PolicyBatch(name, examples, DAPO)
        updates.put(Job(batch, OPTIMIZER, lambda _, name=name: ended.append(name), lambda _: None))  # type: ignore[misc]
        while updates._work is None:
            updates._piece()
    finish_all(updates)
    assert ended == ["p/1", "p/0"]


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_an_update_in_one_go_bit_for_bit(dtype: torch.dtype, *, lean: bool) -> None:
    """Covers neighbours with long and short updates, two epochs, and accumulation onto an existing gradient."""
    taking_turns, in_one_go = (trainer_with(4, dtype=dtype, lean=lean) for _ in range(2))
    for each in (taking_turns, in_one_go):
        learn(each, [PolicyBatch("p/3", SHORT, DAPO)])
    updates = Updates(taking_turns)
    told = {
        "p/0": put(updates, "p/0", LONG, epochs=2),
        "p/1": put(updates, "p/1", SHORT),
        "p/2": put(updates, "p/2", LONG[6:]),
        "p/3": put(updates, "p/3", LONG[::-1], None),
    }
    finish_all(updates)
    alone, drift = {}, dict[str, float]()
    for name, examples, steps in (("p/0", LONG, 2), ("p/1", SHORT, 1), ("p/2", LONG[6:], 1), ("p/3", LONG[::-1], 0)):
        for _ in range(max(1, steps)):
            alone[name] = learn(in_one_go, [PolicyBatch(name, examples, DAPO)])[name]
            drift.setdefault(name, alone[name].metrics["drift"])  # of the first epoch
            if steps:
                step_all(in_one_go, {name: OPTIMIZER})
    for name, (found,) in told.items():
        assert isinstance(found, Learnt)
        assert saved_of(taking_turns, name) == saved_of(in_one_go, name)
        ours, theirs = found.outcome, alone[name]
        assert (ours.loss_sum, ours.tokens, ours.rows, ours.metrics) == (
            theirs.loss_sum, theirs.tokens, theirs.rows, theirs.metrics | {"drift": drift[name]},
        )  # fmt: skip
        assert all(map(np.array_equal, ours.logprobs, theirs.logprobs))


def failing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Any], bool]) -> None:
    run = trainer._ranks.run

    def tried(batch: Any, wanted: Sequence[Any], grade: Any, *, learn: bool) -> Iterator[None]:
        yield from run(batch, wanted, grade, learn=learn)
        if fails(batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer._ranks, "run", tried)


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_an_update_that_fails_in_any_turn_leaves_nothing_and_may_be_retried(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    trainer, other = trainer_with(1), trainer_with(1)
    for each in (trainer, other):
        learn(each, [PolicyBatch("p/0", SHORT, DAPO)])
    before, updates = saved_of(trainer, "p/0"), Updates(trainer)
    failed = put(updates, "p/0", LONG, None)
    after_turns(updates, turns)
    with monkeypatch.context() as patched, capture_logs():
        failing(trainer, patched, lambda _: True)
        finish_all(updates)
    assert isinstance(failed[0], Overloaded)
    assert saved_of(trainer, "p/0") == before
    again = put(updates, "p/0", LONG, None)
    finish_all(updates)
    assert isinstance(again[0], Learnt)
    learn(other, [PolicyBatch("p/0", LONG, DAPO)])
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


def test_a_neighbour_that_fails_in_a_later_turn_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_with(3)
    updates = Updates(trainer)
    long, other = put(updates, "p/0", LONG), put(updates, "p/2", LONG[6:])
    after_turns(updates, 2)
    bad = put(updates, "p/1", [Example([1] * 200, [2] * 200, [1.0] * 200, [0.0] * 200, [1.0] * 200)])
    failing(trainer, monkeypatch, lambda batch: batch.rows >= 200)
    with capture_logs():
        finish_all(updates)
    assert isinstance(bad[0], Overloaded)
    assert isinstance(long[0], Learnt)
    assert isinstance(other[0], Learnt)
    assert saved_of(trainer, "p/0") == learnt_alone("p/0", LONG)
    assert saved_of(trainer, "p/2") == learnt_alone("p/2", LONG[6:])


def test_a_non_finite_later_turn_drops_the_complete_update() -> None:
    trainer = trainer_with(1)
    before, updates = saved_of(trainer, "p/0"), Updates(trainer)
    last = LONG[-1]
    spoiled = Example(last.tokens, last.targets, last.weights, last.sampler_logprobs, [torch.nan] * len(last.tokens))
    told = put(updates, "p/0", [*LONG[:-1], spoiled])
    finish_all(updates)
    assert isinstance(told[0], Learnt)
    assert told[0].step is not None
    assert told[0].step.skipped
    assert saved_of(trainer, "p/0") == before


@pytest.mark.parametrize("within", [True, False])
def test_an_engine_that_ends_between_or_within_turns_leaves_policies_as_they_were(*, within: bool) -> None:
    trainer = trainer_with(2)
    before = [saved_of(trainer, name) for name in ("p/0", "p/1")]
    updates = Updates(trainer)
    told = [put(updates, name, LONG) for name in ("p/0", "p/1")]
    after_turns(updates, 2)
    while not within and updates._work is not None:
        updates._piece()
    updates.close()
    assert [type(each) for (each,) in told] == [Draining, Draining]
    assert [saved_of(trainer, name) for name in ("p/0", "p/1")] == before
    assert not any(trainer.policy(name).busy for name in ("p/0", "p/1"))


def test_an_update_that_began_does_not_wait_for_rollouts() -> None:
    now, trainer = [0.0], trainer_with(1)
    updates = Updates(trainer, clock=lambda: now[0])
    told: Told = []
    updates.put(Job(PolicyBatch("p/0", LONG, DAPO), OPTIMIZER, lambda _: None, told.append, taken_s=3600.0))
    after_turns(updates, 1)
    updates.rollouts = lambda: 5
    finish_all(updates)
    assert isinstance(told[0], Learnt)


async def test_a_long_call_that_fails_in_a_later_turn_has_not_been_and_its_number_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(works, "PIECE_ROWS", 1)
    monkeypatch.setattr(works, "plan_pieces", partial(plan_pieces, most=1))
    monkeypatch.setattr(update, "TURN_ROWS", 1)
    drawn = [[5 + number, 6, 7, 8 + number] for number in range(8)]
    long = [pb.Example(tokens=each, targets=each[::-1], weights=[0, 1, 1, 1]) for each in drawn]

    def step(policy: str) -> pb.OptimStepRequest:
        return pb.OptimStepRequest(policy=policy, sequence=3, learning_rate=1e-2)

    base = save_base(tmp_path / "base")
    async with called(base, tmp_path) as (scene, stub):
        for name in ("one", "two"):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4))
            await stub.ForwardBackward(lesson(name, 1))
        ranks: Any = scene.updates.trainer._ranks
        run, turns = ranks.run, list[int]()

        def fail_later(batch: Any, wanted: Any, grade: Any, *, learn: bool) -> Any:
            turns.append(batch.rows)
            if len(turns) == 5:
                raise RuntimeError("a defect")
            return run(batch, wanted, grade, learn=learn)

        with pytest.MonkeyPatch.context() as patched, capture_logs():
            patched.setattr(ranks, "run", fail_later)
            failed = await refused(stub.ForwardBackward(lesson("one", 2, examples=long)))
        assert (failed.reason, len(turns)) == ("Internal", 5)
        again, undisturbed = [await stub.ForwardBackward(lesson(name, 2, examples=long)) for name in ("one", "two")]
        assert again == undisturbed
        assert await stub.OptimStep(step("one")) == await stub.OptimStep(step("two"))
