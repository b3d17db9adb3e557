"""The threads that read what sources hold: hashing, checking and packing compute on the cores that steps want."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mint_contracts.source import Source
from mint_engine.aside import give_way
from mint_engine.model.device import compute_alone
from mint_engine.sources.local import is_local

PATIENCE_S = 5.0  # after which it is asked whether what is read from is silent
SPARE = 3  # times as many threads as read from this machine may be kept by claims that hang

T = TypeVar("T")


class Readers:
    """`local` threads for files of this machine, `remote` for others, which wait for answers for most of their time.

    As many again read what nobody waits for, and give way to steps. Each computes on one core: an adapter is hundreds
    of small tensors, and for each of them torch's threads would have to meet.
    """

    def __init__(self, local: int, remote: int, is_silent: Callable[[Source], Awaitable[bool]]) -> None:
        """`is_silent` tells whether what a local source lies on answers no more: another is read then beside it."""
        self._is_silent = is_silent
        self._turns = {awaited: asyncio.Semaphore(local) for awaited in (True, False)}  # of files of this machine
        counts = {"fetch": (True, local * (1 + SPARE)), "remote": (False, remote)}
        self._threads = {
            (here, awaited): ThreadPoolExecutor(count, name, initializer=compute_alone if awaited else give_way)
            for name, (here, count) in counts.items()
            for awaited in (True, False)
        }

    async def run(self, source: Source, work: Callable[[], T], *, awaited: bool) -> T:
        """`work`, which reads a source. `awaited`: a request waits for it."""
        here, loop = is_local(source), asyncio.get_running_loop()
        if not here:
            return await loop.run_in_executor(self._threads[here, awaited], work)
        async with self._turns[awaited]:
            reading = loop.run_in_executor(self._threads[here, awaited], work)
            while not (await asyncio.wait({reading}, timeout=PATIENCE_S))[0]:
                if await self._is_silent(source):
                    break
        return await reading

    def close(self) -> None:
        """Start nothing more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
