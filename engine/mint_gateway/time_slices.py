"""Slicing long work on the event loop, so that other requests are answered in between."""

import asyncio

SLICE_S = 0.005  # the longest time without yielding to others


class TimeSlices:
    """The time slices of one answer, starting now."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + SLICE_S

    async def rest(self) -> None:
        """Yield to other tasks if the current slice is over."""
        if self._loop.time() > self._until:
            await asyncio.sleep(0)
            self._until = self._loop.time() + SLICE_S
