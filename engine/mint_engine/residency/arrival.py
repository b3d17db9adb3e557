"""An adapter on its way from the disk into its slot, of which a step may use what has come.

Only where nothing else is computed: such a step waits for each layer's part, within a bound. Its slot's row is mapped
before anything of it is read, and comes piece by piece from its beginning, in which order layers need it.
"""

from collections.abc import Callable

import numpy as np

from mint_contracts.errors import MintError

LOST = -1  # as arrival.h has it
_WHOLE = 2**62


class Arrival:
    """How much of one adapter is in its slot. One thread tells, any may look."""

    def __init__(self, on_begin: Callable[[], None]) -> None:
        """`on_begin` is called once, on the thread that tells, when the slot's tables are there."""
        self._come = np.zeros(1, dtype=np.int64)  # bytes of the row; kernels read it
        self._on_begin = on_begin
        self.begun = False  # its slot's tables are there, and what is in memory of it is known
        self.error: MintError | None = None  # why no more will come

    @property
    def address(self) -> int:
        """Where a kernel finds the bytes of the row that are in memory."""
        return int(self._come.ctypes.data)

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return int(self._come[0]) == _WHOLE

    def reach(self, nbytes: int) -> None:
        """So many bytes of the row are in memory by now, none at first."""
        self._come[0] = nbytes
        if not self.begun:
            self.begun = True
            self._on_begin()

    def end(self) -> None:
        """All of it is there."""
        self._come[0] = _WHOLE

    def lose(self, error: MintError) -> None:
        """No more will come; whoever reads the slot is to be told this."""
        self.error = error
        self._come[0] = LOST


class NotArrived(Exception):
    """A step has ended before its end: what it needs of its adapter has not come, or never will."""
