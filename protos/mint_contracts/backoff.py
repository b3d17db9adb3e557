"""How long to wait before trying again: exponential, jittered, bounded."""

import random


def delay_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return the seconds to wait after the `attempt`-th failure (from 1): half of it fixed, half random.

    The result is within [d/2, d] for d = min(cap_s, first_s * 2^(attempt-1)).
    """
    full = min(cap_s, first_s * 2.0 ** min(attempt - 1, 60))
    return full / 2 + full / 2 * random.random()  # noqa: S311 - spreads clients out; it is no secret
