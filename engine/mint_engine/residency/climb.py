"""Moves a copy from tier to tier: packed to disk, mapped or copied into host memory, then put into a slot."""

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
from mint_engine.residency.retention import RetentionReport
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.source_stat import SourceStat

# Measured with cold files of 20 MB, relative to direct reads of 8 MB: two threads read a disk at 0.7 of their rate
# with two in flight, four threads at 0.95 of their highest rate.
COPY_THREADS = 4
FULL_RETRY_S = 5.0

T = TypeVar("T")
log = structlog.get_logger(__name__)


class SlotMemory(Protocol):
    """The device's slots (see `residency.slots.Slots`). `load` and `clear` are called on worker threads."""

    count: int

    def load(self, slot: int, packed: Packed, *, arrival: Arrival | None = None) -> None:
        """Fill a slot, replacing its tenant; an `arrival` is updated as the adapter is read."""
        ...

    def clear(self, slot: int) -> None:
        """Zero a slot."""
        ...

    def is_empty(self, slot: int) -> bool:
        """Return whether a slot has no tenant."""
        ...

    def retain(self) -> RetentionReport:
        """Keep the contents of slots in memory; called on another thread, concurrently with the other methods."""
        ...


class Climber:
    """Moves copies. Storage is awaited on separate threads, so that it never delays copies that are already here."""

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

        `follows` returns whether a request that begins now can compute while its adapter arrives.
        """
        self._on_aside, self._follows = on_aside, follows
        self._books, self._table, self._memory, self._loader = books, table, memory, loader
        self._readers, self._source_stat = readers, source_stat
        self._copying = ThreadPoolExecutor(COPY_THREADS, "copy", initializer=compute_alone)
        # A GPU's steps do not compete with these threads, and copies to it should keep up with it.
        self._low_priority = LowPriority(lambda: not (books.loads_first or books.host.pinned), COPY_THREADS)

    def close(self) -> None:
        """Start nothing more."""
        self._copying.shutdown(wait=False, cancel_futures=True)

    async def climb(self, copy: Copy) -> None:
        """Bring a copy up to its goal, which a request may raise meanwhile. Raises every error of a load.

        The adapter is read before a slot is taken for it, so that no slot idles meanwhile, or is lost to a failure.
        """
        with self._pinned(copy):
            packed = await self._packed(copy)
            if copy.goal is Tier.HOST and self._books.host.get(copy.key) is None:
                self._refuse_host(copy, packed)
            if copy.goal is Tier.DEVICE and copy.slot is None:
                async with self._readable(copy, packed):
                    await self._to_device(copy, packed)

    async def vacate(self, copy: Copy) -> int:
        """Take an idle copy's slot and return it cleared; it then belongs to the caller."""
        slot = self.take_from(copy)
        await self.clear(slot)
        return slot

    def take_from(self, copy: Copy) -> int:
        """Take an idle copy's slot, without clearing it."""
        slot = None if copy.users else self._books.unseat(copy)
        if slot is None:
            raise Internal(f"adapter {copy.adapter!r}", "has no idle slot to take")
        metrics.VACATED.inc()
        log.info("slot_vacated", adapter=copy.adapter, revision=copy.revision, slot=slot, tier=self._books.tier(copy))
        return slot

    async def clear(self, slot: int) -> None:
        """Clear a slot. If that fails, set it aside, since it may still hold its tenant, and raise the error."""
        try:
            await self._zero(slot)
        except Exception:
            log.exception("slot_set_aside", slot=slot)
            self._table.set_aside(slot)
            self._on_aside()
            raise

    async def clear_again(self) -> None:
        """Try again to clear the slots that were set aside, and free those that could be cleared."""
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
        """Return the packed adapter, from the host tier or by way of the disk tier.

        Unless the goal is Disk, keep it in host memory if it fits; only pinned memory needs a copy for that.
        """
        packed = self._books.host.get(copy.key)
        if packed is None:
            packed = await self._read(copy)
            if copy.goal.warmth >= Tier.HOST.warmth:
                packed = await self._keep(copy, packed)
        copy.read(packed.revision, packed.rank, packed.nbytes)
        return packed

    async def _read(self, copy: Copy) -> Packed:
        """Return the packed adapter by way of the disk tier; first record the state of its source."""
        source = copy.source
        state = copy.state = await self._source_stat.state(source)
        if self._books.disk.holds(source):
            packed = await self._copy(lambda: self._loader.held(source, state))
            if packed is not None:
                return packed
        return await self._readers.run(
            source, lambda: self._loader.load(source), awaited=copy.users > 0, client=copy.client
        )

    async def _keep(self, copy: Copy, packed: Packed) -> Packed:
        """Put an adapter into the host tier, if it fits; else return it as it is."""
        host = self._books.host
        if not host.pinned:
            self._books.evicted(host.put(copy.key, packed) or ())
            return packed
        evicted = host.reserve(copy.key, packed.nbytes)
        if evicted is None:  # it may wait long for a slot, where a mapped file takes no memory of its own
            return packed
        self._books.evicted(evicted)
        try:
            async with self._readable(copy, packed):
                run = await self._copy(lambda: read(packed).pin_memory())
        except BaseException:
            host.drop(copy.key)
            raise
        pinned = replace(packed, run=run, file=packed.file and replace(packed.file))  # the copy maps nothing
        host.put(copy.key, pinned)  # evicts nothing
        return pinned

    async def _to_device(self, copy: Copy, packed: Packed) -> None:
        serving = self._books.current.get(copy.adapter)
        taken = await self._table.take(copy)
        slot = self.take_from(taken) if isinstance(taken, Copy) else taken
        replaced = serving if taken is serving else None
        with self._in_reserve(replaced):
            try:
                await self._fill(slot, copy, packed)
            except Exception as error:  # any error: half an adapter must not stay in a slot
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
        self._table.moved()  # this slot may now be closed or taken

    async def _fill(self, slot: int, copy: Copy, packed: Packed) -> None:
        """Put an adapter into a slot. Requests may get the slot as soon as its file begins to arrive."""
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
        """Return whether requests that wait for a copy may begin before it is complete.

        Not if it replaces a copy that serves the adapter: that one serves until the new one is complete, or failed.
        """
        return copy.users > 0 and self._books.current.get(copy.adapter, copy) is copy and self._follows()

    async def _part_from(self, copy: Copy, error: Exception) -> None:
        """Fail the requests that began with a part of an adapter, and take the slot once none of them reads it."""
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
        """Keep the books from forgetting a copy whose successor took its slot, in case the successor's load fails."""
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
        """On LostBlock, drop the adapter from the host tier and its file from the disk tier, and raise again.

        An error of another rank drops nothing: its own disk or memory may be the cause, and the file here is good.
        """
        try:
            yield
        except LostBlock:
            self._books.host.drop(copy.key)
            await self._readers.run(copy.source, lambda: self._loader.lost(copy.source, packed), awaited=True)
            raise

    @contextmanager
    def _pinned(self, copy: Copy) -> Iterator[None]:
        """Protect a copy's files and weights from eviction."""
        self._books.host.ledger.use(copy.key)
        try:
            with self._books.disk.using(copy.source):
                yield
        finally:
            self._books.host.ledger.release(copy.key)

    async def _copy(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._copying, self._low_priority.run, work)
