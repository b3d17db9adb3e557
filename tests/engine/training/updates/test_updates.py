"""A job takes one optimizer step per epoch, each with the gradient at the weights of that moment."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from mint_contracts.errors import (
    EngineUnavailable,
    Internal,
    InvalidRequest,
    MintError,
    Overloaded,
)
from mint_contracts.training import Loss, Optimizer
from mint_engine.policies.updates import updates as update
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from mint_engine.training import example as examples
from mint_engine.training import optimizer
from mint_engine.training.example import Example, PolicyBatch, with_old
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import finish_all, saved_of, step_all
from tests.engine.training.scene import DAPO, groups, learn, policies, trainer_of, trainer_with

OPTIMIZER = Optimizer(learning_rate=1e-2)


def taken(trainer: Trainer, epochs: int, loss: Loss = DAPO) -> bytes:
    """Return the saved policy after one job; at the job's end the policy is in a complete state."""
    ended: list[bytes] = []
    job = Job(
        PolicyBatch("p/0", groups(1), loss), OPTIMIZER, lambda t: ended.append(saved_of(t, "p/0")), print, epochs
    )
    updates = Updates(trainer)
    updates.put(job)
    finish_all(updates)
    assert not trainer.policy("p/0").halfway
    return ended[0]


def test_two_epochs_are_two_updates_over_the_same_examples() -> None:
    by_job, by_hand = trainer_with(1), trainer_with(1)
    for _ in range(2):
        learn(by_hand, [PolicyBatch("p/0", groups(1), DAPO)])
        step_all(by_hand, {"p/0": OPTIMIZER})
    assert taken(by_job, epochs=2) == saved_of(by_hand, "p/0")
    assert by_job.policy("p/0").step == 2


def test_later_epochs_clip_how_far_a_sequence_has_moved_since_the_first_one() -> None:
    loss = Loss(importance_sampling_level="sequence", clip_low=0.01, clip_high=0.01, ratio_low=0.0, ratio_high=0.0)
    by_job, by_hand = trainer_with(1), trainer_with(1)
    first = None
    clipped = []
    for _ in range(3):
        batch = PolicyBatch("p/0", groups(1), loss)
        outcome = learn(by_hand, [with_old(batch, first) if first is not None else batch])["p/0"]
        first = outcome.logprobs if first is None else first
        clipped.append(outcome.metrics["clipped"])
        step_all(by_hand, {"p/0": OPTIMIZER})
    assert taken(by_job, 3, loss) == saved_of(by_hand, "p/0")
    assert clipped[0] == 0.0
    assert 0.0 < clipped[1] < clipped[2]


def test_later_epochs_leave_out_what_the_first_one_did_however_far_steps_have_moved_it_since() -> None:
    """The band is about how trainer and sampler compute; what steps do is for the clip."""
    loss = Loss(ratio_low=0.2, ratio_high=1.0)
    by_job, by_hand = trainer_with(1), trainer_with(1)
    first, kept = None, []
    for _ in range(3):
        batch = PolicyBatch("p/0", groups(1), loss)
        outcome = learn(by_hand, [with_old(batch, first) if first is not None else batch])["p/0"]
        first = outcome.logprobs if first is None else first
        kept.append(outcome.metrics["kept"])
        step_all(by_hand, {"p/0": OPTIMIZER})
    assert taken(by_job, 3, loss) == saved_of(by_hand, "p/0")
    assert 0.0 < kept[0] < 1.0
    assert kept == [kept[0]] * 3


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (Loss(), True),
        (Loss(importance_sampling_level="sequence", ratio_low=0.0, ratio_high=0.0), True),
        (DAPO, False),
        (Loss(type="cross_entropy"), False),
    ],
    ids=["band", "sequence", "neither", "supervised"],
)
def test_later_epochs_have_log_probabilities_of_the_first_one_only_if_the_loss_reads_them(
    loss: Loss, *, kept: bool
) -> None:
    trainer = trainer_with(1)
    job = Job(PolicyBatch("p/0", groups(1), loss), OPTIMIZER, lambda _: None, print, epochs=2)
    updates = Updates(trainer)
    updates.put(job)
    finish_all(updates)
    assert trainer.policy("p/0").step == 2
    assert {len(each.old_logprobs) > 0 for each in job.batch.examples} == {kept}


def test_drift_is_told_of_the_first_epoch_and_the_ratio_of_the_last_one() -> None:
    """How far trainer and sampler are apart is not what the policy has learnt since."""
    trainer, by_hand, told = trainer_of(), trainer_of(), list[Learnt | MintError]()
    for each in (trainer, by_hand):
        policies(each, 1)
    updates = Updates(trainer)
    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, lambda _: None, told.append, epochs=3))
    while updates.busy:
        updates.advance(0, 0.0)
    found = []
    for _ in range(3):
        found.append(learn(by_hand, [PolicyBatch("p/0", groups(1), DAPO)])["p/0"].metrics)
        step_all(by_hand, {"p/0": OPTIMIZER})
    (learnt,) = told
    assert isinstance(learnt, Learnt)
    assert found[0]["drift"] != found[2]["drift"]
    assert learnt.outcome.metrics == found[2] | {"drift": found[0]["drift"]}


def test_what_a_policy_brings_is_planned_only_when_the_work_comes_to_it() -> None:
    trainer = trainer_with(3)
    many = [example for number in range(40) for example in groups(number)]
    assert sum(len(example.tokens) for example in many) > PIECE_ROWS
    work, planned = trainer.begin([PolicyBatch(f"p/{number}", many, DAPO) for number in range(3)]), []
    while work.advance():
        planned.append(sum(share.agenda is not None for share in work._shares))
    assert set(planned) >= {1, 2, 3}


class Watched(list[int]):
    """Tokens that record whether they were looked at."""

    looked = False

    def __iter__(self) -> Iterator[int]:
        self.looked = True
        return super().__iter__()


def watched(number: int) -> list[Example]:
    return [replace(each, tokens=Watched(each.tokens)) for each in groups(number)]


def looked_at(batches: list[PolicyBatch]) -> list[bool]:
    return [any(getattr(example.tokens, "looked", False) for example in each.examples) for each in batches]


def test_many_policies_that_come_at_once_are_checked_one_piece_at_a_time_and_learn_together() -> None:
    ticks = itertools.count()
    trainer = trainer_of()
    names = policies(trainer, 12)
    updates = Updates(trainer, clock=lambda: next(ticks) * 0.003)  # the duration of each piece
    batches, told = [PolicyBatch(name, watched(number), DAPO) for number, name in enumerate(names)], list[object]()
    for batch in batches:
        updates.put(Job(batch, OPTIMIZER, lambda _: None, told.append))
    checked = [0]
    while checked[-1] < len(names):
        updates.advance(16, 0.01)
        checked.append(sum(looked_at(batches)))
    assert {after - before for before, after in itertools.pairwise(checked)} <= {0, 1}
    while updates._work is None:
        updates.advance(16, 0.01)
    assert len(updates._jobs) == len(names)
    finish_all(updates)
    assert all(isinstance(each, Learnt) for each in told)


def test_a_policys_many_tokens_are_checked_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_CHECKED", 20)
    trainer = trainer_of()
    batch = PolicyBatch("p/0", watched(1), DAPO)
    checking, looks = trainer.check(batch), []
    for _ in checking:
        looks.append(sum(each.tokens.looked for each in batch.examples if isinstance(each.tokens, Watched)))
    assert len(looks) > 2
    assert looks == sorted(set(looks)), "each piece looks at some more"


def test_examples_that_make_no_sense_fail_their_policy_alone() -> None:
    trainer = trainer_with(3)
    updates, told = Updates(trainer), dict[str, list[Learnt | MintError]]()
    for name, batch in {"p/0": groups(1), "p/1": [replace(groups(1)[0], weights=[1.0])], "p/2": groups(2)}.items():
        told[name] = []
        updates.put(Job(PolicyBatch(name, batch, DAPO), OPTIMIZER, lambda _: None, told[name].append))
    finish_all(updates)
    (refused,) = told["p/1"]
    assert isinstance(refused, InvalidRequest)
    assert str(refused).startswith("policy p/1, example 0: has 1 weights")
    assert all(isinstance(told[name][0], Learnt) for name in ("p/0", "p/2"))


@pytest.mark.parametrize("bound", ["MOST_ROWS", "MOST_BYTES"])
def test_updates_that_would_fill_the_memory_are_computed_in_turn(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """The results are the same as when they are learnt together."""
    saved = []
    for most in (1 << 30, 1):
        monkeypatch.setattr(update, bound, most)
        trainer = trainer_of()
        names = policies(trainer, 3)
        updates = Updates(trainer)
        for number, name in enumerate(names):
            batch = PolicyBatch(name, groups(number), DAPO)
            updates.put(Job(batch, OPTIMIZER, lambda _: None, lambda _: None, epochs=2))
        together = set[int]()
        while updates.busy:
            updates._piece()
            together.add(len(updates._jobs))
        assert together == {0, 3 if most > 1 else 1}
        saved.append([saved_of(trainer, name) for name in names])
    assert saved[0] == saved[1]


@pytest.mark.parametrize("computes", [True, False])
def test_a_failure_has_the_device_checked_and_only_a_broken_device_affects_others(
    monkeypatch: pytest.MonkeyPatch, *, computes: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    looks: list[bool] = []
    for place in ("run", "hold", "gather"):
        trainer = trainer_with(1)
        updates, told = Updates(trainer), list[Learnt | MintError]()
        updates.defects.computes = lambda: looks.append(True) or computes  # type: ignore[func-returns-value]
        monkeypatch.setattr(trainer._ranks, place, fail)
        updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, lambda _: None, told.append))
        with capture_logs():
            finish_all(updates)
        assert isinstance(told[0], Internal if computes else EngineUnavailable)
        assert "an illegal memory access" in told[0].message
        assert trainer.policy("p/0").step == 0
    assert len(looks) == 3


def small(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Make the device run out of memory with more than `rows` rows at once."""
    run = trainer._ranks.run

    def bounded(batch: Any, wanted: Sequence[Any], grade: Any, *, learn: bool) -> Iterator[None]:
        if wanted[-1].stop > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch, wanted, grade, learn=learn)

    monkeypatch.setattr(trainer._ranks, "run", bounded)


def test_a_batch_that_is_too_much_for_the_device_fails_its_policy_alone_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, other = trainer_with(3), trainer_with(3)
    batches = {"p/0": groups(1), "p/1": groups(1, prompts=20), "p/2": groups(2)}
    rows = max(sum(len(each.tokens) for each in batches[name]) for name in ("p/0", "p/2"))
    small(trainer, monkeypatch, rows)
    updates, told = Updates(trainer), dict[str, list[Learnt | MintError]]()
    for name, batch in batches.items():
        told[name] = []
        updates.put(Job(PolicyBatch(name, batch, DAPO), OPTIMIZER, lambda _: None, told[name].append))
    with capture_logs():
        finish_all(updates)
    (failed,) = told["p/1"]
    assert isinstance(failed, Overloaded)
    assert "out of memory" in failed.message
    for name in ("p/0", "p/2"):
        assert isinstance(told[name][0], Learnt)
        learn(other, [PolicyBatch(name, batches[name], DAPO)])
        step_all(other, {name: OPTIMIZER})
        assert saved_of(trainer, name) == saved_of(other, name)


def test_a_step_that_finds_no_memory_is_tried_again_with_the_gradient_of_one_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a sum is divided by nothing, the gradients of two attempts would be twice as long as those of one."""
    trainer, other, norm = trainer_with(1), trainer_with(1), optimizer._norm
    unclipped = Optimizer(learning_rate=1e-2, max_grad_norm=0.0)
    batch, told = PolicyBatch("p/0", groups(1), Loss(type="cross_entropy")), list[Learnt | MintError]()

    def full(*_: object) -> Any:
        monkeypatch.setattr(optimizer, "_norm", norm)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimizer, "_norm", full)
    updates = Updates(trainer)
    with capture_logs():
        for _ in range(2):
            updates.put(Job(batch, unclipped, lambda _: None, told.append))
            finish_all(updates)
    failed, learnt = told
    assert isinstance(failed, Overloaded)
    assert isinstance(learnt, Learnt)
    learn(other, [batch])
    step_all(other, {"p/0": unclipped})
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


@pytest.mark.parametrize("place", ["gradient", "step"])
def test_an_epoch_after_the_first_that_finds_no_memory_is_tried_again_by_itself(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of earlier epochs are not taken twice, and the policy ends as if there had been memory at once."""
    trainer, other, told = trainer_of(), trainer_of(), list[Learnt | MintError]()
    for each in (trainer, other):
        policies(each, 1)
    failures, waits = [2], list[float]()

    def full_in_the_second(work: Any) -> Any:
        def attempt(*given: Any, **named: Any) -> Any:
            if trainer.policy("p/0").step == 1 and failures[0]:
                failures[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(*given, **named)

        return attempt

    if place == "gradient":
        monkeypatch.setattr(trainer._ranks, "run", full_in_the_second(trainer._ranks.run))
    else:
        monkeypatch.setattr(trainer, "begin_step", full_in_the_second(trainer.begin_step))
    updates = Updates(trainer)
    updates.later = lambda wait_s, work: waits.append(wait_s) or work()  # type: ignore[func-returns-value]
    loss = Loss(ratio_low=0.2, ratio_high=1.0)
    updates.put(Job(PolicyBatch("p/0", groups(1), loss), OPTIMIZER, lambda _: None, told.append, epochs=3))
    with capture_logs():
        while updates.busy:
            updates.advance(0, 0.0)
    assert isinstance(told[0], Learnt)
    assert waits[0] < waits[1]
    assert saved_of(trainer, "p/0") == taken(other, 3, loss)


def test_an_epoch_that_never_finds_memory_fails_its_policy_in_the_end() -> None:
    trainer, told = trainer_of(), list[Learnt | MintError]()
    policies(trainer, 1)
    run = trainer._ranks.run

    def full_after_the_first(*given: Any, **named: Any) -> Any:
        if trainer.policy("p/0").step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*given, **named)

    trainer._ranks.run = full_after_the_first  # type: ignore[method-assign]
    updates = Updates(trainer)
    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, lambda _: None, told.append, epochs=2))
    with capture_logs():
        while updates.busy:
            updates.advance(0, 0.0)
    (failed,) = told
    assert isinstance(failed, Internal), "to be tried again, the first epoch's step would be taken twice"
    assert trainer.policy("p/0").halfway


def test_a_callers_error_says_when_to_retry() -> None:
    trainer, told = trainer_with(1), list[Learnt | MintError]()

    def full(_: Trainer) -> None:
        raise Overloaded("slot 1", "is taken; retry later", retry_after_s=7.0)

    updates = Updates(trainer)
    updates.put(Job(PolicyBatch("p/0", groups(1), DAPO), None, full, told.append, gone=lambda: True))
    finish_all(updates)
    (failed,) = told
    assert isinstance(failed, Overloaded)
    assert failed.retry_after_s == 7.0
