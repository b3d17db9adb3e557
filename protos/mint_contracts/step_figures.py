"""What a training step tells of itself besides its reward, and a policy's curve of it, bounded in size. Pure."""

import math
from collections.abc import Mapping

import msgspec

MOST_POINTS = 64  # of a curve


class StepFigures(msgspec.Struct, frozen=True, array_like=True):
    """A step's figures, all finite; None: the step has none, as one without any signal has no gradient."""

    step: int  # counted from 1; 0 only tells of the evaluation before the first step
    kl: float | None = None  # k3 to the base, mean over tokens; 0 without a coefficient
    clipped: float | None = None  # share of tokens whose ratio was clipped
    completion_length: float | None = None  # mean, in tokens
    truncated: float | None = None  # share of completions that were cut off
    grad_norm: float | None = None  # before it was clipped
    evaluation: float | None = None  # mean reward of the last evaluation until after this step
    entropy: float | None = None  # of the policy at the sampling temperature, estimated by its samples; in nats


Curve = tuple[StepFigures, ...]


def figures_of_step(step: int, known: Mapping[str, float]) -> StepFigures:
    """Return those of a step's numbers that are figures: JSON, in which they are kept, has only finite ones."""
    names = StepFigures.__struct_fields__[1:]
    return StepFigures(step, **{name: known[name] for name in names if math.isfinite(known.get(name, math.nan))})


def followed_by(curve: Curve, last: StepFigures) -> Curve:
    """Return a curve that ends with `last` and has at most MOST_POINTS steps: all, or every second, fourth ...

    Steps from `last` on are those of an earlier attempt and are left out. What the step before tells of evaluations
    counts until there is another.
    """
    every = 1
    while last.step > every * (MOST_POINTS - 1):  # step 0 counts, too
        every *= 2
    before = [each for each in curve if each.step < last.step]
    if before and last.evaluation is None:
        last = msgspec.structs.replace(last, evaluation=before[-1].evaluation)
    return (*(each for each in before if each.step % every == 0), last)


def evaluated(curve: Curve, step: int, reward: float) -> Curve:
    """Return a curve that ends with `step`, after which an evaluation came to this reward."""
    last = curve[-1] if curve and curve[-1].step == step else StepFigures(step)
    return followed_by(curve, msgspec.structs.replace(last, evaluation=reward))
