"""An adapter that is still being read from disk into its slot; a step may already use the part that has arrived.

This is done only if nothing else is being computed, because the step waits (within a bound) for each layer's part.
The slot's row is mapped before any of it is read, and then read in pieces from its beginning, in the order in which
the layers need it.
"""

from collections.abc import Callable

import numpy as np

from mint_contracts.errors import MintError

LOST = -1  # kernels read it
_WHOLE = 2**62


class Arrival:
    """How much of one adapter is in its slot. One thread updates it; any thread may read it."""

    def __init__(self, on_begin: Callable[[], None]) -> None:
        """`on_begin` is called once, on the updating thread, when the slot's tables have been written."""
        self._loaded = np.zeros(1, dtype=np.int64)  # bytes of the row that have arrived; kernels read it
        self._on_begin = on_begin
        self.begun = False  # the slot's tables are written, and progress is being reported
        self.error: MintError | None = None  # why no more will arrive

    @property
    def address(self) -> int:
        """The address of the count of bytes in memory, for kernels to read."""
        return int(self._loaded.ctypes.data)

    @property
    def whole(self) -> bool:
        """Whether the complete adapter is in the slot."""
        return int(self._loaded[0]) == _WHOLE

    def reach(self, nbytes: int) -> None:
        """Record that the row's first `nbytes` are in memory; the first call may pass 0."""
        self._loaded[0] = nbytes
        if not self.begun:
            self.begun = True
            self._on_begin()

    def end(self) -> None:
        """Record that the complete adapter is in the slot."""
        self._loaded[0] = _WHOLE

    def lose(self, error: MintError) -> None:
        """Record that no more will arrive; `error` is for the requests that read the slot."""
        self.error = error
        self._loaded[0] = LOST


class NotArrived(Exception):
    """A step was cut short because the part of its adapter that it needs has not arrived, or never will."""
