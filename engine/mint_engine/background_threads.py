"""Low-priority background threads that yield to the step thread: clients wait for tokens, nobody for their results.

Any thread can lower its priority, but only root can raise it again: so these are separate threads.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

from mint_engine.model.device import compute_alone

# Added to the nice value: on a core that a step's thread uses, too, such a thread gets a tenth of that one's time
# (Linux weighs nice 0 by 1024 and 10 by 110, sched_prio_to_weight), so four of them on two cores would slow steps by
# a fifth. On an otherwise idle core it gets all of the time.
LOWER = 10
THREADS = 8  # they mostly wait for storage

T = TypeVar("T")
Given = TypeVarTuple("Given")


def lower_priority() -> None:
    """Make the calling thread yield to others and compute without a thread team; for use as a pool's initializer."""
    compute_alone()
    own = threading.get_native_id()  # Linux has a priority per thread
    with suppress(OSError):  # if that is forbidden, keep the normal priority
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + LOWER)


def disable_thread_teams() -> None:
    """Make the running loop's thread and those of `asyncio.to_thread` compute without thread teams.

    Call it after a base was loaded. Otherwise each would have its own team, and with more threads than cores the
    threads of a step sleep when they wait for each other (see `end_team`): one in ten steps beside rollouts took 1.5
    times as long.
    """
    compute_alone()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio", initializer=compute_alone))


_threads = ThreadPoolExecutor(THREADS, "background", initializer=lower_priority)


async def run_in_background(work: Callable[[*Given], T], *given: *Given) -> T:
    """Run `work` with `given` on one of these threads and return its result."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *given)
