"""An order to stop, as it is felt by those who wait for what may never come and have nothing to lose."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Halted(Exception):
    """There was an order to stop before what was waited for."""


class Halt:
    """One course's: `should_stop` says whether it is to stop now, and whoever changes that calls `hear`.

    Lives on the event loop.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._waits: dict[asyncio.Timeout, float] = {}  # each with its grace

    def hear(self) -> None:
        """The order may be another one. Told once more to stop, who waits has no longer for that."""
        for wait, grace_s in self._waits.items():
            if not wait.expired() and (wait.when() is None or not self._should_stop()):
                wait.reschedule(self._ends_at(grace_s))

    @asynccontextmanager
    async def within(self, grace_s: float) -> AsyncIterator[None]:
        """What is done in here is cancelled, and raises Halted, once an order to stop has stood for so long."""
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
