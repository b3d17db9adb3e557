"""An order to stop, as it interrupts waits that may never end and that lose nothing by being interrupted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Halted(Exception):
    """An order to stop came before the result that was waited for."""


class Halt:
    """One course's. `should_stop` returns whether it is to stop now; whoever changes that calls `update`.

    Belongs to the event loop.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._waits: dict[asyncio.Timeout, float] = {}  # with their grace periods in seconds

    def update(self) -> None:
        """Apply a changed order to all waits. A repeated order to stop does not extend their grace periods."""
        for wait, grace_s in self._waits.items():
            if not wait.expired() and (wait.when() is None or not self._should_stop()):
                wait.reschedule(self._ends_at(grace_s))

    @asynccontextmanager
    async def within(self, grace_s: float) -> AsyncIterator[None]:
        """Cancel the context's body and raise Halted once an order to stop has stood for `grace_s`."""
        try:
            async with asyncio.timeout_at(self._ends_at(grace_s)) as wait:
                self._waits[wait] = grace_s
                try:
                    yield
                finally:
                    del self._waits[wait]
        except TimeoutError:
            if not wait.expired():
                raise
            raise Halted from None

    def _ends_at(self, grace_s: float) -> float | None:
        return asyncio.get_running_loop().time() + grace_s if self._should_stop() else None
