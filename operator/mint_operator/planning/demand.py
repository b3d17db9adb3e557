"""How much adapters of a base are asked for, over all engines: what each tells, summed, smoothed and made coarse.

The unit is requests in flight. Coarse means that a plan is made anew only where demand has changed by about a third.
"""

import math
from collections.abc import Iterable, Mapping

Demand = Mapping[str, float]  # adapter -> requests in flight

LEAST = 0.05  # below that, an adapter is as good as not asked for
MOST = 4096  # adapters of a base that are followed
_STEPS = 2  # to each doubling


def followed(before: Demand, demands: Iterable[Demand], weight: float) -> dict[str, float]:
    """The mean that follows from the last one and what engines tell now, which counts for `weight` (0 to 1).

    What an engine told that has died since fades as if nobody asked: its adapters are in demand for a while after it.
    """
    now: dict[str, float] = {}
    for each in demands:
        for adapter, requests in each.items():
            now[adapter] = now.get(adapter, 0.0) + requests
    found = {}
    for adapter in before.keys() | now.keys():
        mean = before.get(adapter, 0.0)
        mean += weight * (now.get(adapter, 0.0) - mean)
        if mean >= LEAST:
            found[adapter] = mean
    if len(found) <= MOST:
        return found
    most = sorted(found, key=lambda adapter: (-found[adapter], adapter))[:MOST]
    return {adapter: found[adapter] for adapter in most}


def coarse(demand: Demand) -> dict[str, float]:
    """The same on a scale of two steps to each doubling: 1, 1.4, 2, 2.8, 4, ... rounded down."""
    return {
        adapter: round(2 ** (math.floor(math.log2(mean) * _STEPS) / _STEPS), 2) for adapter, mean in demand.items()
    }
