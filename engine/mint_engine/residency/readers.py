"""The threads that read what sources hold: hashing, checking and packing compute on the cores that steps want."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mint_contracts.source import Source
from mint_engine.aside import give_way
from mint_engine.model.device import compute_alone
from mint_engine.sources.local import is_local

T = TypeVar("T")


class Readers:
    """`local` threads for files of this machine, `remote` for others, which wait for answers for most of their time.

    As many again read what nobody waits for, and give way to steps. Each computes on one core: an adapter is hundreds
    of small tensors, and for each of them torch's threads would have to meet.
    """

    def __init__(self, local: int, remote: int) -> None:
        self._threads = {
            (here, awaited): ThreadPoolExecutor(count, name, initializer=compute_alone if awaited else give_way)
            for here, count, name in ((True, local, "fetch"), (False, remote, "remote"))
            for awaited in (True, False)
        }

    async def run(self, source: Source, work: Callable[[], T], *, awaited: bool) -> T:
        """`work`, which reads a source. `awaited`: a request waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads[is_local(source), awaited], work)

    def close(self) -> None:
        """Start nothing more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
