"""Runs Python's garbage collector between passes, never during one.

A plan's state is a few hundred thousand long-lived objects. By default, the collector would traverse all of them now
and then, which takes longer than planning a change. So `gc.freeze` sets aside what a pass leaves behind, and a rare
full collection finds the cycles among that. Objects in no cycle are still freed at once: CPython counts references.
"""

import gc
import time
from collections.abc import Callable

YOUNG = 50_000  # new objects that trigger a young collection; Python's default of 700 is a tenth of a wave
WHOLE_S = 600.0  # between full collections: half a second each, at 64,000 copies


class Garbage:
    """Schedules the collections. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole_at = clock()
        gc.set_threshold(YOUNG, 10, 1_000_000)  # only `collect` below collects the oldest generation

    def collect(self) -> None:
        """Collect the cycles of the pass that has ended, and freeze what it leaves."""
        now = self._clock()
        if now - self._whole_at >= WHOLE_S:
            self._whole_at = now
            gc.unfreeze()
            gc.collect()
        else:
            gc.collect(1)
        gc.freeze()
