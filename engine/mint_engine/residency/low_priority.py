"""Work beside the step: on a CPU loads compute on the step's own cores, and each moment of theirs is one of its."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Of a core, that all threads together take in the long run while requests run. With it, as two threads' 1/32,
# `serve.itl_p95_during_loads_over_idle` came to 0.99x, with two threads' 1/20 to 1.32x (SmolLM2-135M, 16 requests of
# rank 32, two idle cores).
SHARE = 1 / 16
LONGEST_REST_S = 0.2


class LowPriority:
    """Lets each of `threads` that work through it rest after its work, in proportion to the time that it computed.

    The rest comes before the thread's next work, so that no result waits for it, and only while `busy` says so: where
    nothing runs, nothing is slowed.
    """

    def __init__(self, busy: Callable[[], bool], threads: int = 1, share: float = SHARE) -> None:
        self._busy, self._share = busy, share / threads
        self._rested = threading.local()

    def run(self, work: Callable[[], T]) -> T:
        """Rest as long as this thread still has to, then work."""
        left = getattr(self._rested, "at", 0.0) - time.monotonic()
        if left > 0 and self._busy():
            time.sleep(left)
        began = time.thread_time()
        try:
            return work()
        finally:
            rest = (time.thread_time() - began) * (1 / self._share - 1)
            self._rested.at = time.monotonic() + min(rest, LONGEST_REST_S)
