"""Advantages of groups of completions: how much better than its group each one is."""

import math
from collections.abc import Sequence
from statistics import fmean

from mint_contracts.training import Scaling

_EPSILON = 1e-4  # TRL's, beside the standard deviation


def group_advantages(groups: Sequence[Sequence[float]], scaling: Scaling = "group") -> list[list[float]]:
    """(R - mean of the group) / (std + 1e-4), with Bessel's correction as TRL and torch have it.

    The deviation is the group's own, that of all rewards ("batch"), or nothing is divided ("none", as in Dr. GRPO).
    A group of one, whose deviation is none, has advantage 0. Rewards must be finite.
    """
    everything = _deviation([reward for group in groups for reward in group])
    found = []
    for group in groups:
        mean = fmean(group) if group else 0.0
        scale = {"group": _deviation(group) + _EPSILON, "batch": everything + _EPSILON, "none": 1.0}[scaling]
        found.append([(reward - mean) / scale for reward in group])
    return found


def has_signal(group: Sequence[float]) -> bool:
    """Whether a group's rewards differ at all: otherwise every advantage is 0 and nothing can be learnt."""
    return max(group, default=0.0) != min(group, default=0.0)


def _deviation(rewards: Sequence[float]) -> float:
    if len(rewards) < 2:
        return 0.0
    mean = fmean(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
