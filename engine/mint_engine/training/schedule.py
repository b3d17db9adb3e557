"""Learning rates over a policy's steps: warm up linearly, then stay, fall linearly or fall as a cosine."""

import math

import msgspec

from mint_contracts.training import Optimizer


def rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, counted from 0, as transformers' schedules of these names.

    Warming up, the first step's rate is the first part of the whole, not 0: a step is never wasted.
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / (warmup + 1)
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.learning_rate * left


def settled(optimizer: Optimizer, step: int, steps: int) -> Optimizer:
    """The optimizer with that step's learning rate put in."""
    return msgspec.structs.replace(optimizer, learning_rate=rate(optimizer, step, steps))
