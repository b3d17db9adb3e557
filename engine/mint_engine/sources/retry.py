"""Retrying work that may succeed next time."""

import time
from collections.abc import Callable
from typing import TypeVar

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError

T = TypeVar("T")


def retrying(work: Callable[[], T], *, attempts: int = 3) -> T:
    """Return `work()`, retried while it raises a MintError that is not terminal; the last error is raised.

    Blocks its thread between attempts.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except MintError as error:
            if error.terminal:
                raise
        time.sleep(delay_s(attempt, first_s=0.2, cap_s=2.0))
    return work()
