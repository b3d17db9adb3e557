"""Waiting before trying again: exponential, jittered, bounded."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from mint_contracts.errors import MintError

T = TypeVar("T")


def delay_s(attempt: int, *, first_s: float, cap_s: float, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the `attempt`-th failure (from 1): half of it fixed, half drawn.

    `draw` gives a number in [0, 1). The result is within [d/2, d] for d = min(cap_s, first_s * 2^(attempt-1)).
    """
    full = min(cap_s, first_s * 2.0 ** min(attempt - 1, 60))
    return full / 2 + full / 2 * draw()


def retrying(work: Callable[[], T], *, attempts: int = 3, first_s: float = 0.2, cap_s: float = 2.0) -> T:
    """`work()`, tried again while it raises a retryable MintError; the last one is raised.

    Blocks its thread between attempts.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except MintError as error:
            if error.terminal:
                raise
        time.sleep(delay_s(attempt, first_s=first_s, cap_s=cap_s))
    return work()
