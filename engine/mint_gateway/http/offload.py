"""What takes long of one request, in a thread beside the loop, so that others are answered meanwhile."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LONG = 64 << 10  # bytes of JSON, or of events: to read or to write more takes ten milliseconds and longer

T = TypeVar("T")


class Offload:
    """A thread: what is long is done one after the other, and takes the memory of one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "offload")

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """What the work over so many bytes gives: at once where they are few."""
        return work() if size < LONG else await asyncio.get_running_loop().run_in_executor(self._thread, work)
