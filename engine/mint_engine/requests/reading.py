"""Reads prompts on threads: long ones on only two, since tokenizers take 300 bytes per token meanwhile.

Short ones run on asyncio's threads, and do not wait for long ones.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from mint_contracts.byte_budget import OWN_BYTES, ByteBudget

LONG_AT_ONCE = 2
MOST_BYTES = 8 << 20  # of long prompts being read or waiting, beyond each one's own allowance: ten seconds of work

T = TypeVar("T")
Given = TypeVarTuple("Given")


class Reading:
    """Reads an engine's prompts. Owned by the event loop."""

    def __init__(self, engine: str) -> None:
        self._threads = ThreadPoolExecutor(LONG_AT_ONCE, "prompt")
        self._most = MOST_BYTES
        self._budget = ByteBudget(self._most, engine, f"has {self._most >> 20} MiB of long prompts to read")

    async def run(self, nbytes: int, work: Callable[[*Given], T], *given: *Given) -> T:
        """Run `work` for a prompt of `nbytes` and return its result. Raises Overloaded if too many bytes wait."""
        if nbytes <= OWN_BYTES:
            return await asyncio.to_thread(work, *given)
        with self._budget.share() as share:
            share.fill(min(nbytes, OWN_BYTES + self._most))  # a longer one is read alone
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
