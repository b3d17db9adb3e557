"""What takes long, cut into slices, so that others are answered in the midst of it."""

import asyncio

SLICE_S = 0.005  # in which nobody else is answered


class TimeSlices:
    """Of one answer, from now on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + SLICE_S

    async def rest(self) -> None:
        """Let others go on, where a slice is over."""
        if self._loop.time() > self._until:
            await asyncio.sleep(0)
            self._until = self._loop.time() + SLICE_S
