"""Bringing a copy from tier to tier: its files to disk, its weights to host memory, then into a slot."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import structlog

from mint_contracts.errors import CapacityExceeded, Internal, Overloaded
from mint_contracts.records import Tier
from mint_engine import residency_metrics as metrics
from mint_engine.adapter import AdapterWeights
from mint_engine.books import Books
from mint_engine.copies import Copy
from mint_engine.loading import Loader
from mint_engine.slot_table import SlotTable

COPY_THREADS = 2
FULL_RETRY_S = 5.0

T = TypeVar("T")
log = structlog.get_logger(__name__)


class SlotMemory(Protocol):
    """The device's slots, as `mint_engine.slots.Slots` has them; called on worker threads."""

    count: int

    def load(self, slot: int, weights: AdapterWeights) -> None:
        """Fill a slot."""
        ...

    def clear(self, slot: int) -> None:
        """Zero a slot."""
        ...


class Climber:
    """Moves copies. Waiting for storage has its own threads, so that it never holds up what is already here."""

    def __init__(
        self, books: Books, table: SlotTable, memory: SlotMemory, loader: Loader, fetch_threads: int
    ) -> None:
        self._books, self._table, self._memory, self._loader = books, table, memory, loader
        self._fetching = ThreadPoolExecutor(fetch_threads, thread_name_prefix="fetch")
        self._copying = ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="copy")

    def close(self) -> None:
        """Start nothing more."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._copying.shutdown(wait=False, cancel_futures=True)

    async def climb(self, copy: Copy) -> None:
        """Bring a copy up to its goal, which a request may raise meanwhile. Raises every error of a load."""
        with self._pinned(copy):
            if self._books.host.get(copy.key) is None:
                await _on(self._fetching, lambda: self._loader.fetch(copy.source))
            if copy.goal is not Tier.DEVICE:
                await self._to_host(copy)
            if copy.goal is Tier.DEVICE and copy.slot is None:
                await self._to_device(copy)

    async def vacate(self, copy: Copy) -> int:
        """Take an idle copy's slot; it comes back cleared and belongs to the caller."""
        slot, copy.slot = copy.slot, None
        if slot is None or copy.users:
            raise Internal(f"adapter {copy.adapter!r}", "has no idle slot to take")
        copy.for_wave = False
        await _on(self._copying, lambda: self._memory.clear(slot))
        metrics.VACATED.inc()
        log.info("slot_cleared", adapter=copy.adapter, revision=copy.revision, slot=slot, tier=self._books.tier(copy))
        return slot

    async def _to_host(self, copy: Copy) -> None:
        weights = await self._weights(copy)
        if copy.goal is Tier.HOST and self._books.host.get(copy.key) is None:
            subject, budget = f"adapter {copy.adapter!r}", self._books.host.ledger.budget
            if weights.nbytes > budget:
                raise CapacityExceeded(subject, f"needs {weights.nbytes} bytes of {budget}; raise hostMemory")
            raise Overloaded(
                subject, "finds host memory full of wanted adapters; raise hostMemory", retry_after_s=FULL_RETRY_S
            )

    async def _weights(self, copy: Copy) -> AdapterWeights:
        """The weights, from the host tier or read anew; unless Disk is the goal they stay there where they fit."""
        weights = self._books.host.get(copy.key)
        if weights is None:
            weights = await _on(self._copying, lambda: self._loader.read(copy.adapter, copy.source))
            if copy.goal.warmth >= Tier.HOST.warmth:
                self._books.host.put(copy.key, weights)
        copy.revision, copy.rank = weights.revision, weights.rank
        return weights

    async def _to_device(self, copy: Copy) -> None:
        # Whoever replaces a copy that serves is read to the end before that one may lose its slot to it.
        replaces = self._books.current.get(copy.adapter) not in {None, copy}
        weights = await self._weights(copy) if replaces else None
        slot = await self._slot_for(copy)
        try:
            weights = weights or await self._weights(copy)
            ready = weights
            await _on(self._copying, lambda: self._memory.load(slot, ready))
        except Exception:  # of any kind: half an adapter must not stay in a slot
            await _on(self._copying, lambda: self._memory.clear(slot))
            self._table.give_back(slot)
            raise
        copy.slot, copy.used = slot, self._books.tick()

    async def _slot_for(self, copy: Copy) -> int:
        taken = await self._table.take(copy)
        return await self.vacate(taken) if isinstance(taken, Copy) else taken

    @contextmanager
    def _pinned(self, copy: Copy) -> Iterator[None]:
        """Keep a copy's files and weights from eviction."""
        self._books.host.ledger.use(copy.key)
        try:
            with self._books.disk.using(copy.source):
                yield
        finally:
            self._books.host.ledger.release(copy.key)


async def _on(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)
