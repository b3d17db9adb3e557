"""Group advantages: how much better each completion is than its group."""

import math
from collections.abc import Sequence

from mint_contracts.training import Scaling

_EPSILON = 1e-4  # TRL's, added to the standard deviation


def group_advantages(groups: Sequence[Sequence[float]], scaling: Scaling = "group") -> list[list[float]]:
    """Return (R - mean of the group) / (std + 1e-4), with Bessel's correction as in TRL and torch.

    std is the group's ("group") or that of all rewards ("batch"); "none" does not divide, as in Dr. GRPO. If all
    rewards of a group are equal, as in a group of one, every advantage is exactly 0: an optimizer would turn even a
    rounding error into a full step. Rewards must be finite.
    """
    everything = deviation([reward for group in groups for reward in group])
    found = []
    for group in groups:
        scale = {"group": deviation(group) + _EPSILON, "batch": everything + _EPSILON, "none": 1.0}[scaling]
        found.append([each / scale for each in _centred(group)])
    return found


def has_signal(group: Sequence[float]) -> bool:
    """Whether a group's rewards differ at all: otherwise every advantage is 0 and nothing can be learnt."""
    return max(group, default=0.0) != min(group, default=0.0)


def deviation(rewards: Sequence[float]) -> float:
    """Return the standard deviation of rewards, with Bessel's correction; 0 of fewer than two."""
    if len(rewards) < 2:
        return 0.0
    return math.sqrt(math.fsum(each**2 for each in _centred(rewards)) / (len(rewards) - 1))


def _centred(rewards: Sequence[float]) -> list[float]:
    """Subtract the mean, computed from distances to the first reward: for equal rewards these are exactly 0."""
    if not rewards:
        return []
    distances = [reward - rewards[0] for reward in rewards]
    mean = math.fsum(distances) / len(distances)
    return [distance - mean for distance in distances]
