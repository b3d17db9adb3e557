"""The threads that read sources. Their hashing, checking and packing compete with steps for CPU cores."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mint_contracts.source import Source
from mint_engine.background_threads import lower_priority
from mint_engine.model.device import compute_alone
from mint_engine.residency.copies import WAVES
from mint_engine.residency.turns import Choose, Turns
from mint_engine.sources.local import is_local

PATIENCE_S = 5.0  # after this long, check whether the place that is read from still responds
SPARE = 3  # for each local reader, threads that hung claims may hold

T = TypeVar("T")


class Readers:
    """`local` concurrent readers of this machine's files, and `remote` ones, which mostly wait for responses.

    Clients take turns at them. As many again read what no request waits for, and yield to steps. Each computes on one
    core: an adapter is hundreds of small tensors, and torch's threads would have to synchronise for each of them.
    """

    def __init__(self, local: int, remote: int, is_silent: Callable[[Source], Awaitable[bool]]) -> None:
        """`is_silent` returns whether a local source's place does not respond; another is then read meanwhile."""
        self._is_silent = is_silent
        self._turns = {
            (here, awaited): Turns(count)
            for here, count in ((True, local), (False, remote))
            for awaited in (True, False)
        }
        counts = {"fetch": (True, local * (1 + SPARE)), "remote": (False, remote)}
        self._threads = {
            (here, awaited): ThreadPoolExecutor(count, name, initializer=compute_alone if awaited else lower_priority)
            for name, (here, count) in counts.items()
            for awaited in (True, False)
        }

    async def run(
        self, source: Source, work: Callable[[], T], *, awaited: bool, client: Choose = lambda _: WAVES
    ) -> T:
        """Run `work`, which reads a source, on a reader's thread. `awaited`: a request waits for it, a `client`'s."""
        here, loop = is_local(source), asyncio.get_running_loop()
        async with self._turns[here, awaited].turn(client):
            reading = loop.run_in_executor(self._threads[here, awaited], work)
            while not (await asyncio.wait({reading}, timeout=PATIENCE_S if here else None))[0]:
                if await self._is_silent(source):
                    break
        return await reading

    def close(self) -> None:
        """Start nothing more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
