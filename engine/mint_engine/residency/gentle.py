"""Work beside the step: on a CPU loads compute on the step's own cores, and each moment of theirs is one of its."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Of a core, that a thread takes in the long run while requests run. With it `serve.itl_p95_during_loads_over_idle`
# came to 0.99x, with 1/20 to 1.32x (SmolLM2-135M, 16 requests of rank 32, two threads that load, two idle cores).
SHARE = 1 / 32
LONGEST_REST_S = 0.1


class Gentle:
    """Lets each thread that works through it rest after its work, in proportion to the processor time that it took.

    The rest comes before the thread's next work, so that no result waits for it, and only while `busy` says so: where
    nothing runs, nothing is slowed.
    """

    def __init__(self, busy: Callable[[], bool], share: float = SHARE) -> None:
        self._busy, self._share = busy, share
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
