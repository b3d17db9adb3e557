"""How many copies an adapter should have, by what its waves want and how much it is asked for.

It follows from the demand and from how many there are, with a band between the two in which nothing changes: demand
has to fall to half of what brought a copy before that copy goes.
"""

import math

from mint_contracts.records import Tier
from mint_operator.planning.adapters import Want

FULL = 32.0  # requests in flight that one copy should have at most: half of what an engine's step decodes at once
KEPT = FULL / 2  # each copy beyond the first stays while there are so many for every other copy


def target(want: Want, requests: float, copies: int) -> int:
    """Copies that an adapter should have, of which there are `copies` now; never fewer than its waves want."""
    if want.residency is not Tier.DEVICE:
        return want.replicas
    asked, kept = math.ceil(requests / FULL), math.floor(requests / KEPT) + 1
    return max(want.replicas, asked, min(copies, kept))
