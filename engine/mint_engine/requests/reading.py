"""Reads prompts on threads: long ones on only two, since tokenizers take 300 bytes per token meanwhile.

Short ones, as which prompts of token IDs count whatever their length, have threads of their own, and wait neither for
long ones nor for what else runs on asyncio's: a training call with a quarter of a million tokens takes a tenth of a
second there, and many policies' calls may come at once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from mint_contracts.byte_budget import OWN_BYTES, ByteBudget

SHORT_AT_ONCE, LONG_AT_ONCE = 4, 2
MOST_BYTES = 8 << 20  # of long prompts being read or waiting, beyond each one's own allowance: ten seconds of work

T = TypeVar("T")
Given = TypeVarTuple("Given")


class Reading:
    """Reads an engine's prompts. Owned by the event loop."""

    def __init__(self, engine: str) -> None:
        self._short = ThreadPoolExecutor(SHORT_AT_ONCE, "short prompt")
        self._long = ThreadPoolExecutor(LONG_AT_ONCE, "prompt")
        self._budget = ByteBudget(MOST_BYTES, engine, f"has {MOST_BYTES >> 20} MiB of long prompts to read")

    async def run(self, nbytes: int, client: str, work: Callable[[*Given], T], *given: *Given) -> T:
        """Run `work` for a client's prompt of `nbytes` and return its result.

        Raises Overloaded if too many bytes wait, or too many of the client's.
        """
        loop = asyncio.get_running_loop()
        if nbytes <= OWN_BYTES:
            return await loop.run_in_executor(self._short, work, *given)
        with self._budget.share(client=client) as share:
            share.fill(min(nbytes, OWN_BYTES + self._budget.most(client)))  # a longer one is its only one
            return await loop.run_in_executor(self._long, work, *given)
