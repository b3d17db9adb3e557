"""How many copies an adapter should have, by what its waves want and by the demand for it.

The number depends on the demand and on the present copies, with hysteresis: demand must fall to half of what added a
copy before that copy is removed.
"""

import math

from mint_contracts.records import Tier
from mint_operator.planning.adapters import Want

FULL = 32.0  # requests in flight per copy, at most: half of what one step of an engine decodes
KEPT = FULL / 2  # a copy beyond the first stays while there are this many requests for each other copy


def target(want: Want, requests: float, copies: int) -> int:
    """Return how many copies an adapter should have, given `copies` now; never fewer than its waves want."""
    if want.residency is not Tier.DEVICE:
        return want.replicas
    asked, kept = math.ceil(requests / FULL), math.floor(requests / KEPT) + 1
    return max(want.replicas, asked, min(copies, kept))
