"""Threads beside the step that give way to it: what they compute nobody waits for at the moment, but tokens somebody.

Anybody can lower a thread's priority, and root alone raise it: so these are threads of their own.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

from mint_engine.model.device import compute_alone

# In nice's measure: on a core that a step's thread wants, too, one gets a tenth of what that gets (Linux weighs 0 by
# 1024 and 10 by 110, sched_prio_to_weight), so four of them on two cores would slow steps by a fifth. A core that
# nobody else wants is all its own.
LOWER = 10
THREADS = 8  # most of their time they wait for storage

T = TypeVar("T")
Given = TypeVarTuple("Given")


def give_way() -> None:
    """From now on the calling thread gives way to others, and computes alone: a pool's initializer."""
    compute_alone()
    own = threading.get_native_id()  # Linux has a priority a thread
    with suppress(OSError):  # where that is forbidden, it goes on as any other
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + LOWER)


def leave_cores() -> None:
    """From now on the running loop's thread and those of `asyncio.to_thread` compute alone; a base is loaded before.

    Each would have a team of its own, and with more threads than cores a step's sleep where they wait for each other
    (see `end_team`): of steps beside rollouts one in ten took half as long again.
    """
    compute_alone()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio", initializer=compute_alone))


_threads = ThreadPoolExecutor(THREADS, "aside", initializer=give_way)


async def aside(work: Callable[[*Given], T], *given: *Given) -> T:
    """What `work` makes of what it is `given`, on one of these threads."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *given)
