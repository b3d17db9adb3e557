"""Limits the CPU share of loads: on a CPU they compute on the step's own cores, and so slow the step down."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# The fraction of one core that all threads together take in the long run while requests run. With two threads at 1/32
# each, `serve.itl_p95_during_loads_over_idle` was 0.99x; with two at 1/20 each it was 1.32x (SmolLM2-135M, 16
# requests of rank 32, two idle cores).
SHARE = 1 / 16
LONGEST_REST_S = 0.2


class LowPriority:
    """Makes each of `threads` threads rest between tasks, in proportion to the CPU time that its last task took.

    The rest comes before the thread's next task, so that no result is delayed by it, and only while `busy` returns
    true: loads are not slowed down if nothing else runs.
    """

    def __init__(self, busy: Callable[[], bool], threads: int = 1, share: float = SHARE) -> None:
        self._busy, self._share = busy, share / threads
        self._rested = threading.local()

    def run(self, work: Callable[[], T]) -> T:
        """Rest for what is left of this thread's rest, then run `work` and return its result."""
        left = getattr(self._rested, "at", 0.0) - time.monotonic()
        if left > 0 and self._busy():
            time.sleep(left)
        began = time.thread_time()
        try:
            return work()
        finally:
            rest = (time.thread_time() - began) * (1 / self._share - 1)
            self._rested.at = time.monotonic() + min(rest, LONGEST_REST_S)
