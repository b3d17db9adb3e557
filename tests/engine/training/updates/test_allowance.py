"""Updates take a bounded share of the step thread's time while tenants are served, and always make progress."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.training import Optimizer
from mint_engine.policies.updates.allowance import LEAST, Allowance
from mint_engine.policies.updates.updates import MOST_WAIT_S, WAIT_SHARE, Job, Learnt, Updates
from mint_engine.scheduling.background import SHARE
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.work import Share, Work
from tests.engine.training.at_once import create, finish_all
from tests.engine.training.scene import DAPO, groups, trainer_of

_SECONDS = st.floats(1e-3, 1.0)
_STEPS = st.lists(st.tuples(_SECONDS, st.integers(1, 64), st.integers(0, 64), _SECONDS), min_size=1, max_size=60)


@given(_STEPS)
def test_all_steps_together_a_share_and_one_piece_at_most_are_spent(
    steps: list[tuple[float, int, int, float]],
) -> None:
    allowance, spent, earned, longest = Allowance(), 0.0, 0.0, 0.0
    for step_s, tenants, rollouts, piece_s in steps:
        allowance.grant(step_s, tenants, rollouts)
        earned += step_s * SHARE
        while allowance.open:
            allowance.spend(piece_s)
            spent += piece_s
            longest = max(longest, piece_s)
    assert spent <= earned + longest + 1e-9


@given(_SECONDS, st.integers(1, 64), st.integers(0, 64), _SECONDS)
def test_the_longest_piece_is_paid_back_in_the_end(
    step_s: float, tenants: int, rollouts: int, piece_s: float
) -> None:
    allowance = Allowance()
    allowance.grant(step_s, tenants, rollouts)
    assert allowance.open
    allowance.spend(piece_s)
    for _ in range(math.ceil(piece_s / (LEAST * step_s)) + 1):
        allowance.grant(step_s, tenants, rollouts)
    assert allowance.open


def test_pieces_that_are_short_beside_a_step_follow_every_one_of_them() -> None:
    ticks = itertools.count()
    trainer = trainer_of()
    updates = Updates(trainer, clock=lambda: next(ticks) * 0.003)  # the duration of each piece
    create(trainer, "a", PolicySettings(4, 8.0, (), 0))
    learnt: list[object] = []
    batch = PolicyBatch("a", tuple(groups(1)), DAPO, completion_tokens=16)
    updates.put(Job(batch, Optimizer(), lambda _: None, learnt.append))

    pieces = []
    while not learnt:
        before = next(ticks)
        updates.advance(16, 0.01)
        pieces.append(next(ticks) - before - 2)  # advance reads the clock once at the start, and after each piece

    assert isinstance(learnt[0], Learnt)
    assert set(pieces[:-1]) == {0, 1}, "2.5 ms a step are five sixths of a piece"
    assert sum(pieces) > 15


@pytest.mark.parametrize(("taken_s", "shares"), [(0.0, True), (1.0, False)], ids=["SFT", "GRPO"])
def test_updates_of_policies_that_draw_none_leave_half_of_the_time_to_rollouts(
    taken_s: float, *, shares: bool
) -> None:
    """Such policies have the next update ready at once, so that rollouts of others would hardly get on."""
    ticks, decoded_s = itertools.count(), 0.0
    trainer = trainer_of()
    updates = Updates(trainer, clock=lambda: next(ticks) * 0.003)
    updates.rollouts = lambda: 8
    create(trainer, "a", PolicySettings(4, 8.0, (), 0))
    batch, left = PolicyBatch("a", tuple(groups(1)), DAPO, completion_tokens=16), [10]

    def again(_: object) -> None:
        left[0] -= 1
        if left[0]:
            updates.put(Job(batch, Optimizer(), lambda _: None, again, taken_s=taken_s))

    updates.put(Job(batch, Optimizer(), lambda _: None, again, taken_s=taken_s))
    began = next(ticks)
    while left[0]:
        updates.advance(8, 0.005)
        decoded_s += 0.005
    updated_s = (next(ticks) - began) * 0.003
    assert (decoded_s > 0.5 * updated_s) is shares


def test_calls_use_the_share_too_and_one_follows_every_step() -> None:
    now, done = [0.0], list[int]()
    updates = Updates(trainer_of(), clock=lambda: now[0])

    def call(number: int) -> None:
        now[0] += 1.0  # far beyond the share
        done.append(number)

    for number in range(4):
        updates.call(partial(call, number))
    for after in range(1, 5):
        assert updates.busy
        updates.advance(16, 0.01)
        assert done == list(range(after))
    assert not updates.busy


@pytest.mark.parametrize(("taken_s", "waits_s"), [(8.0, 8.0 * WAIT_SHARE), (3600.0, MOST_WAIT_S), (0.0, 0.0)])
def test_a_ready_update_waits_a_share_of_its_steps_time_for_others_whose_rollouts_never_end(
    taken_s: float, waits_s: float
) -> None:
    """Else a policy of quick steps would be as slow as those of others that share its engine."""
    now = [0.0]
    trainer = trainer_of()
    updates = Updates(trainer, clock=lambda: now[0])
    updates.rollouts = lambda: 5
    create(trainer, "a", PolicySettings(4, 8.0, (), 0))
    learnt: list[object] = []
    batch = PolicyBatch("a", tuple(groups(1)), DAPO, completion_tokens=16)
    updates.put(Job(batch, Optimizer(), lambda _: None, learnt.append, epochs=2, taken_s=taken_s))

    now[0] += 0.99 * waits_s
    updates.advance(5, 0.01)
    assert waits_s == 0.0 or not learnt, "others would be learnt from in the same products"
    now[0] += 0.02 * waits_s
    while updates.busy:
        updates.advance(5, 0.01)
    assert isinstance(learnt[0], Learnt), "also by the second epoch, which waits no second time"


def test_policies_whose_rollouts_end_at_about_the_same_time_learn_together() -> None:
    now, trainer = [0.0], trainer_of()
    updates, learnt, together = Updates(trainer, clock=lambda: now[0]), list[object](), list[int]()
    updates.rollouts = lambda: 5
    begin = trainer.begin

    def noted(batches: Sequence[PolicyBatch | Share], *, checked: bool = False, most: int = 0) -> Work:
        together.append(len(batches))
        return begin(batches, checked=checked, most=most)

    trainer.begin = noted  # type: ignore[method-assign]
    for name in ("a", "b", "c"):
        create(trainer, name, PolicySettings(4, 8.0, (), 0))
        batch = PolicyBatch(name, tuple(groups(1)), DAPO, completion_tokens=16)
        updates.put(Job(batch, Optimizer(), lambda _: None, learnt.append, taken_s=8.0 + now[0]))
        updates.advance(5, 0.01)
        now[0] += 0.4 * 8.0 * WAIT_SHARE
    while updates.busy:
        updates.advance(5, 0.01)
    assert all(isinstance(each, Learnt) for each in learnt)
    assert together == [3]


def test_two_jobs_of_one_policy_run_in_order_and_delay_nobody_else() -> None:
    trainer = trainer_of()
    updates = Updates(trainer)
    learnt: dict[str, list[object]] = {"a": [], "b": []}
    for policy in ("a", "a", "b"):
        if policy not in trainer.names:
            create(trainer, policy, PolicySettings(4, 8.0, (), 0))
        batch = PolicyBatch(policy, tuple(groups(1)), DAPO, completion_tokens=16)
        updates.put(Job(batch, Optimizer(), lambda _: None, learnt[policy].append))

    finish_all(updates)
    assert [len(each) for each in learnt.values()] == [2, 1]
    assert all(isinstance(each, Learnt) for told in learnt.values() for each in told)
    first, second = (each.step.step for each in learnt["a"] if isinstance(each, Learnt) and each.step)
    assert (first, second) == (1, 2)
