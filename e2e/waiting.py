"""Waits for something to become true in a cluster, with a time limit and a name for what is awaited."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.25

T = TypeVar("T")


def until(what: str, probe: Callable[[], T], timeout_s: float = 120) -> T:
    """Call `probe` until it returns something true, and return that. Raises TimeoutError naming what was awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}; last seen: {found!r}")
        time.sleep(POLL_S)
