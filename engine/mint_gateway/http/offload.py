"""Running a request's long computations in a thread, so that the event loop answers others meanwhile."""

from collections.abc import Callable
from typing import TypeVar

from mint_contracts.shared_threads import SharedThreads
from mint_gateway.security.keys import sharer

LONG = 64 << 10  # bytes of JSON or events; reading or writing more takes ten milliseconds or longer

T = TypeVar("T")


class Offload:
    """One worker thread: long computations run one after another, so only one's memory is in use at a time.

    Keys take turns: one that sends many long requests does not hold up others'.
    """

    def __init__(self) -> None:
        self._thread = SharedThreads(1, "offload")

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """Return the result of work over `size` bytes, computed inline if they are few."""
        return work() if size < LONG else await self._thread.run(sharer.get(), work)
