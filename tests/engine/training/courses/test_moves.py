"""Which move a policy makes next: invariants that every course must keep, whatever orders it receives."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.training import Evaluation, Policies, Train
from mint_contracts.training_records import LEASE_TTL_S, Order, Stage
from mint_engine.policies.courses.moves import Move, Standing, is_sure, next_move

TRAINS = st.builds(
    lambda steps, save, publish, evaluate: Train(
        Policies(count=1),
        steps=steps,
        checkpoint_every_steps=save,
        publish_every_steps=publish,
        evaluation=None if evaluate is None else Evaluation(every_steps=evaluate),
    ),
    steps=st.integers(1, 12),
    save=st.integers(1, 5),
    publish=st.integers(0, 5),
    evaluate=st.none() | st.integers(1, 5),
)


def after(standing: Standing, move: Move) -> Standing:
    """Return the standing after a move."""
    changes: dict[Move, dict[str, Any]] = {
        Move.STEP: {"step": standing.step + 1},
        Move.EVALUATE: {"evaluated": standing.step},
        Move.SAVE: {"saved": standing.step, "writing": True},
        Move.PUBLISH: {"published": standing.step, "writing": True},
        Move.SETTLE: {"writing": False},
        Move.WAIT: {},
    }
    return msgspec.structs.replace(standing, **changes[move])


@given(TRAINS, st.lists(st.booleans(), max_size=40), st.sampled_from(Order), st.integers(0, 30))
def test_a_course_ends_saved_and_writes_nothing_while_its_lease_is_unsure(
    train: Train, sure: list[bool], order: Order, moves_before: int
) -> None:
    standing, taken, told = Standing(saved=0), list[Move](), Order.RUN
    for at in range(200):
        told = order if at >= moves_before else told
        is_sure_now = sure[at] if at < len(sure) else True
        move = next_move(standing, train, told, sure=is_sure_now)
        if isinstance(move, Stage):
            break
        if not is_sure_now:
            assert move is Move.WAIT
        taken.append(move)
        standing = after(standing, move)
    else:
        raise AssertionError(f"no end in sight: {taken[-5:]}")
    assert standing.saved == standing.step
    assert not standing.writing
    evaluated = train.evaluation is None or standing.evaluated == train.steps
    if standing.step == train.steps and (evaluated or order is Order.CANCEL):
        assert move is Stage.COMPLETE
        assert standing.published == standing.step or order is Order.CANCEL
    else:
        assert move is {Order.PAUSE: Stage.PAUSED, Order.CANCEL: Stage.CANCELLED}[order]


def test_the_moves_of_a_short_course() -> None:
    train = Train(
        Policies(count=1),
        steps=3,
        checkpoint_every_steps=2,
        publish_every_steps=0,
        evaluation=Evaluation(every_steps=2),
    )
    standing, taken = Standing(saved=0), list[str]()
    while isinstance(move := next_move(standing, train, Order.RUN, sure=True), Move):
        taken.append(move)
        standing = after(standing, move)
    assert taken == [
        *("evaluate", "step", "step", "evaluate", "save", "step", "evaluate", "save", "publish", "settle")
    ]


def test_a_cancelled_policy_publishes_nothing_more() -> None:
    train = Train(Policies(count=1), steps=5)
    assert next_move(Standing(2, saved=2, published=1), train, Order.CANCEL, sure=True) is Stage.CANCELLED
    assert next_move(Standing(2, saved=2, published=1), train, Order.PAUSE, sure=True) is Move.PUBLISH


@pytest.mark.parametrize(("age", "sure"), [(0.0, True), (LEASE_TTL_S - 0.1, True), (LEASE_TTL_S, False)])
def test_a_lease_is_sure_for_as_long_as_the_map_has_just_named_it(age: float, sure: bool) -> None:
    assert is_sure(100.0, 100.0 + age) is sure
