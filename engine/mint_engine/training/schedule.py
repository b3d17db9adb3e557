"""Learning rates over a policy's steps: linear warm-up, then constant, linear decay or cosine decay."""

import math

import msgspec

from mint_contracts.training import Optimizer


def rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Return the learning rate of step `step` of `steps`, from 0, as in transformers' schedules of these names.

    The warm-up's first step has the first fraction of the rate, not 0, so that no step is wasted.
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / (warmup + 1)
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.learning_rate * left


def with_rate(optimizer: Optimizer, step: int, steps: int) -> Optimizer:
    """Return the optimizer with the learning rate of that step."""
    return msgspec.structs.replace(optimizer, learning_rate=rate(optimizer, step, steps))
