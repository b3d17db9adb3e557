"""Keeps adapters in the tiers of this engine (Remote, Disk, Host, Device), on demand and as the placement map asks.

Level-based: a keeper compares what waves want with what is here, for the adapters for which either has changed, and
takes the next steps that `decide` returns. All state belongs to the event loop; blocking work runs on a few threads.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import structlog

from mint_contracts import records
from mint_contracts.awaiting import end_tasks
from mint_contracts.errors import Internal, MintError, Overloaded, SourceUnavailable
from mint_contracts.names import check_asked
from mint_contracts.records import Assignment, Tier
from mint_contracts.shares import Shares
from mint_contracts.source import Source
from mint_engine.residency import metrics
from mint_engine.residency.audit import Audit, Evidence
from mint_engine.residency.books import Books
from mint_engine.residency.climb import Climber, SlotMemory
from mint_engine.residency.copies import WAVES, Copy, fresh_error
from mint_engine.residency.decide import decide
from mint_engine.residency.holding import AdapterStatus, Pinned, Tenant
from mint_engine.residency.host import HostTier
from mint_engine.residency.lending import Lending, with_offered
from mint_engine.residency.limits import ResidencyLimits
from mint_engine.residency.load_queue import LoadQueue
from mint_engine.residency.loading import Loader
from mint_engine.residency.policy_device import PolicyDevice
from mint_engine.residency.polling import Poller
from mint_engine.residency.prefetch import Prefetcher
from mint_engine.residency.rate import LoadRate
from mint_engine.residency.readers import Readers
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.source_stat import SourceStat
from mint_engine.residency.supervision import supervise
from mint_engine.residency.watching import Watch
from mint_engine.sources.local import is_local

FIRST_PER_S = 40.0  # loads assumed before the first one has ended: 0.1 s each on four threads
CLOSE_S = 5.0
LIMITS = ResidencyLimits()

log = structlog.get_logger(__name__)


class Residency:
    """The `Holder` of one engine. `on_change` is called whenever what it holds, or failed to load, has changed.

    `on_aside` is called when a slot could not be cleared: its device may be broken. `in_flight` returns what requests
    expect in their slots, from their start until their end is reported, and `trained` the host memory that policies
    have. `follows` returns whether a request may begin while its adapter arrives. `policy_gpu` is the memory of a
    GPU on which policies train.
    """

    def __init__(
        self,
        memory: SlotMemory,
        loader: Loader,
        host: HostTier,
        *,
        store: Source | None = None,
        policy_gpu: PolicyDevice | None = None,
        limits: ResidencyLimits = LIMITS,
    ) -> None:
        self.books = Books(host, loader.disk, store, limits.requests_waiting)
        loader.disk.sheds = host.shed
        self.slots = SlotTable(self.books, memory.count, limits.slot_wait_s, limits.terms)
        self._source_stat = SourceStat(loader)
        self._readers = Readers(limits.workers, limits.remote_workers, self._is_silent)
        self._climber = Climber(
            self.books,
            self.slots,
            memory,
            loader,
            self._readers,
            self._source_stat,
            lambda: self.on_aside(),
            lambda: self.follows(),
        )
        watch = Watch(self.books, self._source_stat, self._start)
        self._poller = Poller(memory, self._climber.clear_again, watch, self._changed, limits.poll_s)
        self.lending = Lending(
            self.books, self.slots, self._climber, loader, self._source_stat, self._spawn, self._want_anew, policy_gpu
        )
        evidence = Evidence(memory, lambda: self.in_flight(), self.lending.room, lambda: self.trained())
        self._audit = Audit(self.books, self.slots, evidence, limits.audit_s)
        self._prefetcher = Prefetcher(
            loader, self._readers, self._source_stat, lambda: not self.books.loading, lambda: self.on_change()
        )
        self._wanted: dict[str, Assignment] = {}
        self._loads, self._waiting = Shares(limits.loads_waiting), Shares(limits.requests_waiting)
        # By whether sources are local.
        self._lines = {True: (limits.workers, LoadQueue()), False: (limits.remote_workers, LoadQueue())}
        self._wake = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.rate = LoadRate()
        self.on_change: Callable[[], None] = lambda: None
        self.on_aside: Callable[[], None] = lambda: None
        self.trained: Callable[[], int] = lambda: 0
        self.in_flight: Callable[[], frozenset[Tenant] | None] = lambda: None
        self.follows: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Start the background tasks that keep what waves want. A defect of one ends it for a moment only."""
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "keeper": self._keep,
            "poller": self._poller.run,
            "prefetcher": self._prefetcher.run,
            "audit": lambda: self._audit.run(lambda: not self._tasks),
        }
        self._keepers = [asyncio.create_task(supervise(name, run)) for name, run in loops.items()]

    async def close(self) -> None:
        """Stop loading, waiting up to CLOSE_S for running loads. Slots stay as they are; the books are checked."""
        await end_tasks(self._keepers)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        self._audit.look(busy=bool(self._tasks))
        for late in list(self._tasks):
            late.cancel()
        self._climber.close()
        self._readers.close()
        self._source_stat.close()

    def want(self, assignments: Iterable[Assignment]) -> None:
        """Hold exactly these from now on, each in its tier or warmer, and release what waves wanted before."""
        self._wanted = {each.adapter: each for each in self._prefetcher.split(assignments)}
        self._want_anew()

    @asynccontextmanager
    async def hold(self, adapter: str, source: Source | None = None, client: str = "") -> AsyncIterator[Pinned]:
        """Pin the adapter's current revision in a slot until exit, loading it first if it is cold (see `Holder`)."""
        copy = await self._open_copy(check_asked(adapter), source, client)
        copy.users += 1
        try:
            slot = await self._in_slot(copy, client)
            with self.books.serve(copy):
                yield Pinned(slot=slot, revision=copy.revision, arrival=copy.arrival)
        finally:
            copy.users -= 1
            self.books.use(copy)
            if copy.users == 0:
                self.books.changed(copy)
                self.slots.moved()
                self._wake.set()

    def states(self) -> list[AdapterStatus]:
        """Return every copy that this engine holds or failed to load, sorted by adapter."""
        return self.books.states()

    def report(self) -> dict[str, records.Held]:
        """Return what the placement map must know, by adapter."""
        return self._prefetcher.prefetched() | self.books.report()

    def check(self) -> None:
        """Raise Internal if the books of slots, references, requests in flight and bytes do not balance."""
        if problem := self._audit.imbalance(busy=bool(self._tasks)):
            raise Internal("residency", problem)

    async def _keep(self) -> None:
        self.books.due |= self.books.wants.keys() | self.books.of_adapter.keys()  # a defect may have left some undone
        while True:
            self._wake.clear()
            self.books.settle()
            self._step()
            self.on_change()
            if not self._tasks:
                self._audit.stir()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.books.next_retry_s()):
                    await self._wake.wait()

    def _step(self) -> None:
        """Start what `decide` returns for the adapters that are due, and for those that waited for a load worker."""
        due, self.books.due = self.books.due, set()
        for local in self._lines:
            self._step_in(local, {name for name in due if self._is_local(name) is local})

    def _is_local(self, name: str) -> bool:
        want = self.books.wants.get(name)
        return want is None or is_local(want.source)

    def _step_in(self, local: bool, names: set[str]) -> None:
        """Do one step for local sources or for the others; neither takes the other's workers."""
        workers, queue = self._lines[local]
        loading = [copy for copy in self.books.loading if is_local(copy.source) is local]
        busy = sum(self.books.wanted(copy) and not self._source_stat.is_stuck(copy.source) for copy in loading)
        names |= queue.pop(workers - busy)
        views, wants = self.books.picture(names)
        actions = decide(views, wants, self.books.store, room=workers - busy)
        for key, tier in actions.load:
            self._start(self.books.copy_of(key), tier)
        again = set(actions.retry)
        for name in actions.wait:
            queue.add(wants[name], failed=name in again)
        for key in actions.vacate:
            self._spawn(self._free(self.books.copies[key]))
        for key in actions.drop:
            self.books.host.drop(key)
            self.books.evicted([key])
            self._wake.set()
        if queue and busy + len(actions.load) < workers:
            self._wake.set()

    async def _is_silent(self, source: Source) -> bool:
        try:
            await self._source_stat.state(source)
        except SourceUnavailable:
            self._wake.set()  # other loads may take the place of the stuck one
            return True
        return False

    async def _free(self, copy: Copy) -> None:
        if copy.slot is not None and copy.users == 0:
            self.slots.give_back(await self._climber.vacate(copy))
            self._changed()

    async def _open_copy(self, adapter: str, source: Source | None, client: str) -> Copy:
        """Return the copy that answers a request, waiting while that copy's slot is closed."""
        while (closed := (copy := self.books.for_request(adapter, source)).closed) is not None:
            with self._awaiting(copy, client), self.books.awaiting_open_slot.holding(adapter):
                await closed.over.wait()
        return copy

    async def _in_slot(self, copy: Copy, client: str) -> int:
        """Return the copy's slot, loading the copy first if necessary. Raises what its load raises."""
        while copy.seated is None:
            refusal = copy.refusal(time.monotonic())
            if refusal is not None:
                raise self.books.for_client(copy, refusal)
            with self._awaiting(copy, client):
                load = copy.load
                if load is None:
                    self._admit(copy, client)
                    load = self._start(copy, Tier.DEVICE, client)
                elif copy.users == 1:  # its last client had left, so its place in line did not count
                    self.slots.moved()
                copy.goal = Tier.DEVICE
                usable = copy.usable
                if usable is None or usable.done():  # it became usable early, but its load then failed
                    usable = load
                error = await asyncio.shield(usable)
            if error is not None and copy.slot is None:
                raise self.books.for_client(copy, fresh_error(error, error.retry_after_s))
        return copy.seated

    @contextmanager
    def _awaiting(self, copy: Copy, client: str) -> Iterator[None]:
        """Count a request that waits for its adapter. Raises Overloaded if too many wait already."""
        counter = self.books.awaiting
        if not counter.has_room(copy.adapter, 1):
            own = counter.of(copy.adapter)
            raise self._refusal(
                copy, f"{counter.total} requests already wait for adapters, {own} of them for this one"
            )
        if not self._waiting.may_take(client):
            mine = f"{self._waiting.taken(client)} requests with your key already wait for adapters"
            raise self._refusal(copy, f"{mine}, and {self._waiting.free} more are left for other keys")
        self._waiting.take(client)
        try:
            with counter.holding(copy.adapter), copy.awaited_by(client):
                yield
        finally:
            self._waiting.give_back(client)

    def _admit(self, copy: Copy, client: str) -> None:
        if self._loads.may_take(client):
            return
        if self._loads.free <= 0:  # waves' loads are never refused
            raise self._refusal(copy, f"{len(self.books.loading)} other adapters are loading or waiting")
        mine = f"{self._loads.taken(client)} adapters that requests with your key need are loading or waiting"
        raise self._refusal(copy, f"{mine}, and {self._loads.free} more are left for other keys")

    def _refusal(self, copy: Copy, why: str) -> Overloaded:
        return Overloaded(
            f"adapter {copy.adapter!r}",
            f"cannot be loaded now: {why}; retry later",
            retry_after_s=max(0.1, len(self.books.loading) / (self.rate.per_s or FIRST_PER_S)),
        )

    def _start(self, copy: Copy, goal: Tier, client: str = WAVES) -> "asyncio.Task[MintError | None]":
        copy.goal = goal
        self._loads.take(client)
        copy.load = self._spawn(self._load(copy, client))
        copy.usable = asyncio.get_running_loop().create_future()
        copy.load.add_done_callback(partial(_tell_end, copy.usable))
        self.books.loading.add(copy)
        self.rate.began(time.monotonic())
        self.books.changed(copy)
        return copy.load

    async def _load(self, copy: Copy, client: str) -> MintError | None:
        """Run one load to its end and return its error, if any. Never raises: all waiters get the same answer."""
        began, error = time.monotonic(), None
        try:
            await self._climber.climb(copy)
        except MintError as failed:
            error = failed
        except Exception as defect:  # a defect of one adapter must not stop the engine
            log.exception("load_defect", adapter=copy.adapter, source=copy.source.uri)
            error = Internal(
                f"adapter {copy.adapter!r}", f"could not be loaded ({type(defect).__name__}); see the log"
            )
        finally:
            copy.load = None
            self._loads.give_back(client)
            self.books.loading.discard(copy)
            self.books.changed(copy)
        now = time.monotonic()
        self.rate.ended(now, loading=len(self.books.loading))
        seconds = now - began
        metrics.tell_load("loaded" if error is None else error.reason, seconds)
        load_log = log.bind(adapter=copy.adapter, source=copy.source.uri, seconds=round(seconds, 4))
        if error is None:
            copy.recovered()
            load_log.info(
                "loaded", revision=copy.revision, tier=self.books.tier(copy), slot=copy.slot, rank=copy.rank
            )
        else:
            self.books.failed(copy, error)
            load_log.warning("load_failed", reason=error.reason, error=str(error), terminal=error.terminal)
        self._changed()
        return error

    def _want_anew(self) -> None:
        own = frozenset(self.lending.offered.keys() - self._wanted.keys())
        self.books.set_wants(with_offered(self._wanted, self.lending.offered, self.books.announced), own)
        self.slots.moved()
        self._changed()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._audit.stir()

    def _changed(self) -> None:
        self.books.settle()
        metrics.tell_used(self.slots.used, self.books.host.ledger.used, self.books.disk.used)
        self._wake.set()
        self._prefetcher.nudge()
        self.on_change()


def _tell_end(usable: "asyncio.Future[MintError | None]", load: "asyncio.Task[MintError | None]") -> None:
    """Resolve `usable` when a load ends, unless it was resolved earlier."""
    if usable.done():
        return
    if load.cancelled():
        usable.cancel()
    else:
        usable.set_result(load.result())
