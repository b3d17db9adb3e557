"""Threads that wait for stores and sources: a silent source blocks these, and none that requests are read on.

asyncio's own threads are few (six on two cores) and reserved for short work.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

THREADS = 32

T = TypeVar("T")
Given = TypeVarTuple("Given")

_threads = ThreadPoolExecutor(THREADS, "blocking")


async def run_blocking(work: Callable[[*Given], T], *given: *Given) -> T:
    """Run `work` with `given` on one of these threads and return its result; waits while all threads are busy."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *given)
