"""Advantages of groups of completions: how much better than its group each one is."""

import math
from collections.abc import Sequence

from mint_contracts.training import Scaling

_EPSILON = 1e-4  # TRL's, beside the standard deviation


def group_advantages(groups: Sequence[Sequence[float]], scaling: Scaling = "group") -> list[list[float]]:
    """(R - mean of the group) / (std + 1e-4), with Bessel's correction as TRL and torch have it.

    The deviation is the group's own, that of all rewards ("batch"), or nothing is divided ("none", as in Dr. GRPO).
    Where all rewards of a group are alike, every advantage is 0 to the bit: of a rounding's, however small, an
    optimizer would make a whole step. So has a group of one, whose deviation is none. Rewards must be finite.
    """
    everything = _deviation([reward for group in groups for reward in group])
    found = []
    for group in groups:
        scale = {"group": _deviation(group) + _EPSILON, "batch": everything + _EPSILON, "none": 1.0}[scaling]
        found.append([each / scale for each in _centred(group)])
    return found


def has_signal(group: Sequence[float]) -> bool:
    """Whether a group's rewards differ at all: otherwise every advantage is 0 and nothing can be learnt."""
    return max(group, default=0.0) != min(group, default=0.0)


def _centred(rewards: Sequence[float]) -> list[float]:
    """Each less their mean, which is taken of distances from the first: of likes these are 0, and no rounding is."""
    if not rewards:
        return []
    distances = [reward - rewards[0] for reward in rewards]
    mean = math.fsum(distances) / len(distances)
    return [distance - mean for distance in distances]


def _deviation(rewards: Sequence[float]) -> float:
    if len(rewards) < 2:
        return 0.0
    return math.sqrt(math.fsum(each**2 for each in _centred(rewards)) / (len(rewards) - 1))
