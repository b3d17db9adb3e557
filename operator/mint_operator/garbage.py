"""When Python looks for cycles: between passes, never in the middle of one.

What a plan knows is a few hundred thousand objects that live on. Left to itself, the collector goes through all of
them every so often, which takes longer than planning after a change does. So what a pass leaves behind is set aside
(`gc.freeze`); what of it was part of a cycle is found by the rare look at everything. Memory that no cycle holds is
freed at once all the same: CPython counts references.
"""

import gc
import time
from collections.abc import Callable

YOUNG = 50_000  # objects made before the young ones are looked through; Python's own 700 are a tenth of a wave
WHOLE_S = 600.0  # between looks at everything: half a second each, at 64,000 copies


class Garbage:
    """`clock` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole_at = clock()
        gc.set_threshold(YOUNG, 10, 1_000_000)  # the oldest generation is looked through here alone

    def collect(self) -> None:
        """A pass has ended: drop its cycles, and set aside what it leaves."""
        now = self._clock()
        if now - self._whole_at >= WHOLE_S:
            self._whole_at = now
            gc.unfreeze()
            gc.collect()
        else:
            gc.collect(1)
        gc.freeze()
