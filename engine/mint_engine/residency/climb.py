"""Bringing a copy from tier to tier: packed to disk, mapped or copied into host memory, then into a slot."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Protocol, TypeVar

import structlog

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Internal, MintError, Overloaded
from mint_contracts.records import Tier
from mint_engine.adapters.packed import Packed
from mint_engine.model.device import compute_alone
from mint_engine.residency import metrics
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.loading import Loader
from mint_engine.residency.low_priority import LowPriority
from mint_engine.residency.readers import Readers
from mint_engine.residency.reading import LostBlock, read
from mint_engine.residency.remapping import HUGE
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.source_stat import SourceStat
from mint_engine.residency.staying import Stayed

# Cold files of 20 MB came from a disk at 0.7 of what direct reads of 8 MB gave with two in flight, at 0.95 of the
# most that those gave at all with four.
COPY_THREADS = 4
FULL_RETRY_S = 5.0

T = TypeVar("T")
log = structlog.get_logger(__name__)


class SlotMemory(Protocol):
    """The device's slots, as `residency.slots.Slots` has them; the first two are called on worker threads."""

    count: int

    def load(self, slot: int, packed: Packed, *, arrival: Arrival | None = None) -> None:
        """Fill a slot, in place of whatever was in it; an `arrival` hears of what is there already."""
        ...

    def clear(self, slot: int) -> None:
        """Zero a slot."""
        ...

    def is_empty(self, slot: int) -> bool:
        """Nothing of any tenant is left in a slot."""
        ...

    def tend(self) -> Stayed:
        """Have what is in slots stay in memory; called on a thread of its own, beside the others."""
        ...


class Climber:
    """Moves copies. Waiting for storage has its own threads, so that it never holds up what is already here."""

    def __init__(
        self,
        books: Books,
        table: SlotTable,
        memory: SlotMemory,
        loader: Loader,
        readers: Readers,
        source_stat: SourceStat,
        on_aside: Callable[[], None],
        follows: Callable[[], bool],
    ) -> None:
        """`on_aside` is called when a slot could not be cleared.

        `follows` tells whether a request that begins now can compute while its adapter comes.
        """
        self._on_aside, self._follows = on_aside, follows
        self._books, self._table, self._memory, self._loader = books, table, memory, loader
        self._readers, self._source_stat = readers, source_stat
        self._copying = ThreadPoolExecutor(COPY_THREADS, "copy", initializer=compute_alone)
        # A device of its own has its own time, and what copies to it wants to keep up with it.
        self._low_priority = LowPriority(lambda: not (books.in_haste or books.host.pinned), COPY_THREADS)

    def close(self) -> None:
        """Start nothing more."""
        self._copying.shutdown(wait=False, cancel_futures=True)

    async def climb(self, copy: Copy) -> None:
        """Bring a copy up to its goal, which a request may raise meanwhile. Raises every error of a load.

        It is read to the end before a slot is taken for it: no slot is idle, and none is lost to a load that fails.
        """
        with self._pinned(copy):
            packed = await self._packed(copy)
            if copy.goal is Tier.HOST and self._books.host.get(copy.key) is None:
                self._refuse_host(copy, packed)
            if copy.goal is Tier.DEVICE and copy.slot is None:
                async with self._readable(copy, packed):
                    await self._to_device(copy, packed)

    async def vacate(self, copy: Copy) -> int:
        """Take an idle copy's slot; it comes back cleared and belongs to the caller."""
        slot = self.take_from(copy)
        await self.clear(slot)
        return slot

    def take_from(self, copy: Copy) -> int:
        """Take an idle copy's slot, which is still full of it."""
        slot = None if copy.users else self._books.unseat(copy)
        if slot is None:
            raise Internal(f"adapter {copy.adapter!r}", "has no idle slot to take")
        metrics.VACATED.inc()
        log.info("slot_vacated", adapter=copy.adapter, revision=copy.revision, slot=slot, tier=self._books.tier(copy))
        return slot

    async def clear(self, slot: int) -> None:
        """Clear a slot. Where that fails it may still hold its tenant: it is set aside, and that error raised."""
        try:
            await self._zero(slot)
        except Exception:
            log.exception("slot_set_aside", slot=slot)
            self._table.set_aside(slot)
            self._on_aside()
            raise

    async def clear_again(self) -> None:
        """Try the slots that were set aside, and give back what can be cleared by now."""
        for slot in sorted(self._table.aside):
            with suppress(Exception):  # logged when it was set aside
                await self._zero(slot)
                self._table.give_back(slot)

    async def _zero(self, slot: int) -> None:
        await self._copy(lambda: self._memory.clear(slot))

    def _refuse_host(self, copy: Copy, packed: Packed) -> None:
        subject, budget = f"adapter {copy.adapter!r}", self._books.host.ledger.budget
        if packed.nbytes > budget:
            raise CapacityExceeded(
                subject, f"needs {in_units(packed.nbytes)} of {in_units(budget)}; raise hostMemory"
            )
        raise Overloaded(
            subject,
            "does not fit: host memory is full of wanted adapters; raise hostMemory",
            retry_after_s=FULL_RETRY_S,
        )

    async def _packed(self, copy: Copy) -> Packed:
        """The packed adapter, from the host tier or by way of the disk tier.

        Unless Disk is the goal it stays in host memory where it fits; only pinned memory needs a copy for that.
        """
        packed = self._books.host.get(copy.key)
        if packed is None:
            packed = await self._read(copy)
            if copy.goal.warmth >= Tier.HOST.warmth:
                packed = await self._keep(copy, packed)
        copy.read(packed.revision, packed.rank, packed.nbytes)
        return packed

    async def _read(self, copy: Copy) -> Packed:
        """The packed adapter by way of the disk tier; notes what its source was before it was read."""
        source = copy.source
        state = copy.state = await self._source_stat.state(source)
        if self._books.disk.holds(source):
            packed = await self._copy(lambda: self._loader.held(source, state))
            if packed is not None:
                return packed
        return await self._readers.run(source, lambda: self._loader.load(source), awaited=copy.users > 0)

    async def _keep(self, copy: Copy, packed: Packed) -> Packed:
        """Put an adapter into the host tier where it fits."""
        host = self._books.host
        if host.pinned and packed.nbytes <= host.ledger.budget:
            mapped = packed
            async with self._readable(copy, mapped):
                run = await self._copy(lambda: read(mapped).pin_memory())
            packed = replace(mapped, run=run, file=mapped.file and replace(mapped.file))  # this one maps nothing
        self._books.evicted(host.put(copy.key, packed) or ())
        return packed

    async def _to_device(self, copy: Copy, packed: Packed) -> None:
        serving = self._books.current.get(copy.adapter)
        taken = await self._table.take(copy)
        slot = self.take_from(taken) if isinstance(taken, Copy) else taken
        replaced = serving if taken is serving else None
        with self._in_reserve(replaced):
            try:
                await self._fill(slot, copy, packed)
            except Exception as error:  # of any kind: half an adapter must not stay in a slot
                await self._part_from(copy, error)
                with suppress(Exception):  # the load's own error says more
                    await self.clear(slot)
                    self._table.give_back(slot)
                if replaced is not None and self._books.current.get(copy.adapter) is copy:
                    self._books.current[copy.adapter] = replaced  # a failed load never stops serving
                raise
        if copy.arrival is None:
            self._books.seat(copy, slot)
        else:
            copy.arrival.end()
            self._books.unpin(copy)
        self._table.moved()  # it may be this slot's turn next

    async def _fill(self, slot: int, copy: Copy, packed: Packed) -> None:
        """Put an adapter into a slot; requests may have the slot as soon as its file begins to come."""
        if packed.file is None or packed.nbytes <= HUGE or not self._may_begin(copy):
            await self._copy(lambda: self._memory.load(slot, packed))
            return
        loop, ended = asyncio.get_running_loop(), False

        def begin() -> None:
            if not ended and self._may_begin(copy):
                self._books.seat_early(copy, slot, arrival)

        def tell() -> None:
            loop.call_soon_threadsafe(begin)

        arrival = Arrival(tell)
        try:
            await self._copy(lambda: self._memory.load(slot, packed, arrival=arrival))
        finally:
            ended = True

    def _may_begin(self, copy: Copy) -> bool:
        """Whether requests wait for a copy that may begin before it is there, and it takes no other's place.

        What serves by its name goes on until all of it has come, for that may fail.
        """
        return copy.users > 0 and self._books.current.get(copy.adapter, copy) is copy and self._follows()

    async def _part_from(self, copy: Copy, error: Exception) -> None:
        """Where requests have begun with a part of an adapter, fail them, and take the slot once none reads it."""
        arrival = copy.arrival
        if arrival is None:
            return
        defect = Internal(f"adapter {copy.adapter!r}", "could not be put into its slot; see the log")
        arrival.lose(error if isinstance(error, MintError) else defect)
        while copy.serving:
            copy.leaving = asyncio.Event()
            await copy.leaving.wait()
        self._books.unpin(copy)
        self._books.unseat(copy)

    @contextmanager
    def _in_reserve(self, replaced: Copy | None) -> Iterator[None]:
        """Keep a copy whose slot its successor has taken from being forgotten, in case that one's load fails."""
        if replaced is None:
            yield
            return
        replaced.in_reserve = True
        replaced.users += 1
        try:
            yield
        finally:
            replaced.users -= 1
            replaced.in_reserve = False
            self._books.changed(replaced)

    @asynccontextmanager
    async def _readable(self, copy: Copy, packed: Packed) -> AsyncIterator[None]:
        """Where the disk has lost a block of the file that an adapter is mapped from, keep neither in any tier.

        Not where another rank could not read it: its own disk or memory may be the reason, and what is here is good.
        """
        try:
            yield
        except LostBlock:
            self._books.host.drop(copy.key)
            await self._readers.run(copy.source, lambda: self._loader.lost(copy.source, packed), awaited=True)
            raise

    @contextmanager
    def _pinned(self, copy: Copy) -> Iterator[None]:
        """Keep a copy's files and weights from eviction."""
        self._books.host.ledger.use(copy.key)
        try:
            with self._books.disk.using(copy.source):
                yield
        finally:
            self._books.host.ledger.release(copy.key)

    async def _copy(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._copying, self._low_priority.run, work)
