"""Running a request's long computations in a thread, so that the event loop answers others meanwhile."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LONG = 64 << 10  # bytes of JSON or events; reading or writing more takes ten milliseconds or longer

T = TypeVar("T")


class Offload:
    """One worker thread: long computations run one after another, so only one's memory is in use at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "offload")

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """Return the result of work over `size` bytes, computed inline if they are few."""
        return work() if size < LONG else await asyncio.get_running_loop().run_in_executor(self._thread, work)
