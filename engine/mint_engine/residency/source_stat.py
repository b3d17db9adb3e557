"""Looks at the files of local sources without being blocked by a filesystem that does not respond.

Calls to a claim whose server is gone (NFS, mounted hard) may never return, and each keeps its thread. So looks run on
threads of their own, of which each claim gets only a few; callers get SourceUnavailable after SILENT_S, and at once
while a look that timed out is still running.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mint_contracts.errors import SourceUnavailable
from mint_contracts.source import Source
from mint_engine.residency.loading import Loader
from mint_engine.sources.local import is_local, place_of
from mint_engine.sources.storage import subject_of

SILENT_S = 5.0  # a look at a few files takes milliseconds, even if the server is far away
EACH = 4  # concurrent looks at one place
THREADS = 32
SOME = 16  # sources per look

T = TypeVar("T")


class SourceStat:
    """Looks at one engine's local sources. Belongs to the event loop."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._threads = ThreadPoolExecutor(THREADS, "look")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._running: dict[str, dict[asyncio.Future[Any], float]] = defaultdict(dict)  # by place: when each began
        self._late: set[asyncio.Future[Any]] = set()  # those of them that have timed out

    async def state(self, source: Source) -> str | None:
        """Return the source's state (see `Loader.state`). Raises SourceUnavailable if its place does not respond."""
        if not is_local(source):
            return None
        return await self._ask(source, lambda: self._loader.state(source))

    async def states(self, sources: Sequence[Source]) -> list[str | None]:
        """Return the state of each source, "" if unknown."""
        places: dict[str, set[Source]] = {}
        for source in filter(is_local, sources):
            places.setdefault(place_of(source), set()).add(source)
        found: dict[Source, str | None] = {}
        for states in await asyncio.gather(*[self._states_at(list(each)) for each in places.values()]):
            found |= states
        return [found.get(source, "") if is_local(source) else None for source in sources]

    def is_stuck(self, source: Source) -> bool:
        """Return whether a look at the source's place has timed out and is still running."""
        return not self._late.isdisjoint(self._running.get(place_of(source), ()))

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _states_at(self, sources: list[Source]) -> dict[Source, str | None]:
        """Return the states of sources at one place, up to the first look that gets no answer."""
        found: dict[Source, str | None] = {}
        for begin in range(0, len(sources), SOME):
            some = sources[begin : begin + SOME]
            try:
                found |= await self._ask(some[0], partial(self._look, some))
            except SourceUnavailable:
                break
        return found

    def _look(self, sources: list[Source]) -> dict[Source, str | None]:
        return {each: self._loader.state(each) for each in sources}

    async def _ask(self, source: Source, work: Callable[[], T]) -> T:
        place = place_of(source)
        silent = SourceUnavailable(subject_of(source), f"waits for {place}, which does not respond; retrying")
        if self.is_stuck(source):
            raise silent
        turns = self._turns.setdefault(place, asyncio.Semaphore(EACH))
        look: asyncio.Future[T] | None = None
        try:
            async with asyncio.timeout(SILENT_S):
                await turns.acquire()
                look = self._begin(place, turns, work)
                return await asyncio.shield(look)
        except TimeoutError:
            self._late |= self._overdue(place) if look is None else {look} & self._running.get(place, {}).keys()
            raise silent from None

    def _overdue(self, place: str) -> set["asyncio.Future[Any]"]:
        """Return the looks at a place that have run for SILENT_S: others got their turns only lately."""
        now = asyncio.get_running_loop().time()
        return {look for look, begun in self._running.get(place, {}).items() if now - begun >= SILENT_S}

    def _begin(self, place: str, turns: asyncio.Semaphore, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Start a look, which runs to its end even if nobody waits for it any more."""

        def ended(look: "asyncio.Future[T]") -> None:
            turns.release()
            del self._running[place][look]
            if not self._running[place]:
                del self._running[place]
            self._late.discard(look)
            if not look.cancelled():
                look.exception()  # mark it as retrieved; whoever waits gets it too

        loop = asyncio.get_running_loop()
        look = loop.run_in_executor(self._threads, work)
        self._running[place][look] = loop.time()
        look.add_done_callback(ended)
        return look
