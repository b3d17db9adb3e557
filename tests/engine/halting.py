"""Slots into which adapters arrive when the test lets them."""

import errno
import os
import threading

from mint_engine.adapters.packed import Packed
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.reading import unreadable
from mint_engine.residency.slots import Slots


class Halting:
    """Slots whose loads halt halfway if requests may begin early; the test lets the second part arrive or fails it.

    There is one loading thread, so nothing else loads meanwhile.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots, self.count = slots, slots.count
        self.halts, self.halted = True, False
        self.begun = 0
        self._lost: bool | None = None  # whether the halted load fails; None until decided
        self._move = threading.Condition()
        self.clear, self.is_empty, self.retain = slots.clear, slots.is_empty, slots.retain

    def load(self, slot: int, packed: Packed, *, arrival: Arrival | None = None) -> None:
        """Load as `SlotMemory.load` does."""
        self._slots.load(slot, packed)
        if arrival is None or not self.halts:
            return
        with self._move:
            arrival.reach(1)
            self._lost, self.halted, self.begun = None, True, self.begun + 1
            assert self._move.wait_for(lambda: self._lost is not None, 60)
            self.halted = False
        if self._lost:
            raise unreadable(packed, OSError(errno.EIO, os.strerror(errno.EIO)))

    def go_on(self, *, lost: bool) -> None:
        """Let the second part of the halted load arrive, or fail it."""
        with self._move:
            self._lost = lost
            self._move.notify_all()
