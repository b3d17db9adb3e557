"""Where prompts are read: long ones on two threads of their own, for tokenizers take 300 bytes a token meanwhile.

Short ones, on asyncio's threads, wait for none of these.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from mint_contracts.room import OWN_BYTES, Room

LONG_AT_ONCE = 2
MOST_BYTES = 8 << 20  # of long prompts that are read, or wait for that, beyond what is each one's own: ten seconds

T = TypeVar("T")
Given = TypeVarTuple("Given")


class Reading:
    """Of an engine's prompts. Owned by the event loop."""

    def __init__(self, engine: str) -> None:
        self._threads = ThreadPoolExecutor(LONG_AT_ONCE, "prompt")
        self._most = MOST_BYTES
        self._room = Room(self._most, engine, f"has {self._most >> 20} MiB of long prompts to read")

    async def run(self, nbytes: int, work: Callable[[*Given], T], *given: *Given) -> T:
        """What `work` makes of a prompt that came in so many bytes. Raises Overloaded where too many wait."""
        if nbytes <= OWN_BYTES:
            return await asyncio.to_thread(work, *given)
        with self._room.part() as part:
            part.fill(min(nbytes, OWN_BYTES + self._most))  # one that is longer than all of that is read alone
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
