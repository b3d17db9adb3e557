"""What a policy does next: a pure function of its progress, what its wave wants and whether its lease is sure."""

from enum import StrEnum

import msgspec

from mint_contracts.training import Train
from mint_contracts.training_records import LEASE_TTL_S, Order, Stage


class Move(StrEnum):
    """One thing that a course does, by its name in metrics."""

    STEP = "step"
    EVALUATE = "evaluate"
    SAVE = "save"  # begin to write a checkpoint; the course goes on meanwhile
    PUBLISH = "publish"  # the same for a revision
    SETTLE = "settle"  # wait for the writes under way
    WAIT = "wait"  # the lease is not sure: write nothing, begin nothing


class Standing(msgspec.Struct, frozen=True):
    """How far a policy is: its finished steps now, and at the last save, publication and evaluation begun."""

    step: int = 0
    saved: int = -1
    published: int = 0
    evaluated: int = -1
    writing: bool = False


def next_move(standing: Standing, train: Train, order: Order, *, sure: bool) -> Move | Stage:
    """Return the next move, or the stage in which the course ends."""
    if not sure:
        return Move.WAIT
    ended = standing.step >= train.steps
    leaving = order is not Order.RUN
    evaluates = _due_evaluation(standing, train, ended=ended)
    if evaluates and not leaving:
        return Move.EVALUATE
    if standing.saved < standing.step and (ended or leaving or _due(standing.step, train.checkpoint_every_steps)):
        return Move.SAVE
    publishes = ended or _due(standing.step, train.publish_every_steps)
    if standing.published < standing.step and publishes and order is not Order.CANCEL:
        return Move.PUBLISH
    if not (ended or leaving):
        return Move.STEP
    if standing.writing:
        return Move.SETTLE
    if ended and not (evaluates and order is Order.PAUSE):  # a policy that is paused now evaluates later
        return Stage.COMPLETE
    return Stage.PAUSED if order is Order.PAUSE else Stage.CANCELLED


def is_sure(confirmed_at: float, now: float) -> bool:
    """Whether a lease that the map confirmed at `confirmed_at` may still be acted on. Both times are of one clock."""
    return now - confirmed_at < LEASE_TTL_S


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _due_evaluation(standing: Standing, train: Train, *, ended: bool) -> bool:
    evaluation = train.evaluation
    if evaluation is None or standing.evaluated >= standing.step:
        return False
    return ended or _due(standing.step, evaluation.every_steps)
