"""Threads that wait for stores and sources: one that falls silent takes these, and none that requests are read on.

asyncio's own threads are few (six on two cores), and whatever has to be short is done there.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

THREADS = 32

T = TypeVar("T")
Given = TypeVarTuple("Given")

_threads = ThreadPoolExecutor(THREADS, "asking")


async def asked(work: Callable[[*Given], T], *given: *Given) -> T:
    """What `work` makes of what it is `given`, on one of these threads. Whoever comes while all wait has to wait."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *given)
