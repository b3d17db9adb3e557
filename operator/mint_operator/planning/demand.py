"""The demand for a base's adapters over all engines: what each engine reports, summed, smoothed and made coarse.

The unit is requests in flight. Coarse means that a new plan is made only if demand has changed by about a third.
"""

import math
from collections.abc import Iterable, Mapping

Demand = Mapping[str, float]  # adapter -> requests in flight

LEAST = 0.05  # below this, demand counts as none
MOST = 4096  # adapters of a base that are followed
_STEPS = 2  # per doubling


def followed(before: Demand, demands: Iterable[Demand], weight: float) -> dict[str, float]:
    """Return the means updated by what engines report now, which counts with `weight` (0 to 1).

    The reports of an engine that has died fade gradually, so its adapters stay in demand for a while.
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
    """Return the demand rounded down to a scale of two steps per doubling: 1, 1.4, 2, 2.8, 4, ..."""
    return {
        adapter: round(2 ** (math.floor(math.log2(mean) * _STEPS) / _STEPS), 2) for adapter, mean in demand.items()
    }
