"""Our side: one engine in this process, assembled as `mint-engine` does it, with its clients in the same process.

python -m tests.bench.our_engine '{"base": ..., "store": ..., ...}'      (JSON of Setup)
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.background_threads import disable_thread_teams, run_in_background
from mint_engine.build import build
from mint_engine.policies.stored.revisions import publish, sweep
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import store_of
from mint_engine.requests.events import Done, Event, Failed, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from mint_engine.sources.local import LocalFolder
from tests.bench.memory import forget_pages, read_bytes, resident_bytes
from tests.bench.our_setup import Setup
from tests.bench.our_side import serve
from tests.bench.protocol import Answer
from tests.bench.timing import Round
from tests.bench.workload import Work

REACH_S = 300.0
STREAMS = 4  # concurrent loads: as many as a residency has threads


class Engine:
    """The engine and its clients; each public method is one command (see `tests.bench.side`)."""

    def __init__(self, setup: Setup) -> None:
        loop = asyncio.get_running_loop()
        settings = setup.settings
        self._base, self._slots, generation = build(settings, Path(setup.base), Limits(), threads=setup.threads)
        disable_thread_teams()
        loader = Loader(
            DiskTier(Path(setup.cache), setup.disk_bytes),
            Fit(modules=self._slots.modules, max_rank=setup.max_rank),
            self._slots.dtype,
        )
        host = HostTier(setup.host_bytes, pinned=self._slots.device.type == "cuda")
        self.residency = Residency(self._slots, loader, host, store=settings.store)
        self.stepper = Stepper(generation, lambda deliver: _post(loop, deliver))
        self.residency.follows = lambda: self.stepper.follows_arrivals
        self._store = settings.store
        self._numbers = itertools.count()
        self._wanted: dict[str, Assignment] = {}
        self._busy = False  # whether a round of requests is running
        self._cache = Path(setup.cache)
        self.residency.start()
        self.stepper.start()

    async def generate(
        self, stream: Sequence[str] = (), handing_over: dict[str, str] | None = None, **work: Any
    ) -> Answer:
        """Run one round of requests; return its duration, and each request's time to first token and gaps.

        Meanwhile the adapters of `stream` are loaded from disk through the remaining slots, over and over, and new
        revisions of a live adapter are published one after another: `handing_over` says which and where.
        """
        plan = msgspec.convert(work, Work)
        if stream:
            await self.forget()
        round_, self._busy = Round(), True
        streaming = asyncio.create_task(self._stream(stream))
        handovers = asyncio.create_task(self._hand_over(**handing_over or {}))
        waiting = asyncio.Semaphore(plan.together)

        async def client(index: int, prompt: list[int]) -> None:
            async with waiting:
                await self._ask(plan.adapter(index), prompt, plan.new_tokens, round_)

        before = read_bytes()
        try:
            await _all(client(index, prompt) for index, prompt in enumerate(plan.prompts()))
        finally:
            self._busy = False
            streamed, handed_over = await streaming, await handovers
        told = {"streamed": streamed, "handed_over": handed_over, "read": read_bytes() - before}
        return {**round_.told(), **told}

    async def hold(self, names: list[str], tier: str) -> Answer:
        """Want only these adapters, in `tier`; wait until they are there, and return how long it took."""
        began, goal = time.perf_counter(), Tier(tier)
        assert self._store is not None
        self._want(*[Assignment(name, child(self._store, name), goal) for name in names], anew=True)
        deadline = time.monotonic() + REACH_S
        while not self._reached(names, goal):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(names)} adapters not in {tier} after {REACH_S:.0f} s")
            await asyncio.sleep(0.005)
        return {"seconds": time.perf_counter() - began}

    async def touch(self, names: list[str]) -> Answer:
        """Load each adapter into a slot once, a few at a time, without sending it a request."""
        began, few = time.perf_counter(), asyncio.Semaphore(4)

        async def once(name: str) -> None:
            async with few, self.residency.hold(name):
                pass

        await _all(once(name) for name in names)
        return {"seconds": time.perf_counter() - began}

    async def forget(self) -> Answer:
        """Drop all packed files from the page cache, so that the next load of one reads the disk.

        The files of adapters in slots stay.
        """
        for path in self._cache.glob("*.mint"):
            await asyncio.to_thread(forget_pages, path)
        return {}

    async def publish(self, name: str, source: str, into: str, prompt: list[int]) -> Answer:
        """Publish a trained adapter from memory as a new revision of a live one, and request a token from it.

        Timed are computing its digest and writing its file, the engine loading it beside the old revision, and the
        first token. It begins as a trainer holds it: in a slot's layout.
        """
        trained = self._trained(LocalFolder(Path(source), name))
        began = time.perf_counter()
        written, sweeping = await self._publish(name, trained, into)
        live, round_ = time.perf_counter(), Round()
        await self._ask(name, prompt, 1, round_)
        done = time.perf_counter()
        await sweeping
        return {"seconds": done - began, "write": written - began, "load": live - written, "first": done - live}

    async def memory(self) -> Answer:
        """Return the process's resident bytes, and the engine's own counts of its tiers."""
        books = self.residency.books
        return {
            "resident": resident_bytes(),
            "host": books.host.ledger.used,
            "disk": books.disk.ledger.used,
            "slots": self.residency.slots.used,
            "slot_bytes": sum(self._slots.filled) * self._slots.dtype.itemsize,
        }

    async def _stream(self, names: Sequence[str]) -> int:
        """Load these adapters in turn, a few at a time, until the round ends; return how many were loaded."""
        turns, loaded = itertools.cycle(names), 0

        async def one_after_another() -> None:
            nonlocal loaded
            while self._busy:
                async with self.residency.hold(next(turns)):
                    loaded += 1
                if loaded % len(names) == 0:
                    await self.forget()

        if names:
            await _all(one_after_another() for _ in range(STREAMS))
        return loaded

    async def _hand_over(self, name: str = "", source: str = "", into: str = "") -> int:
        """Publish revision after revision of a live adapter until the round ends; return how many became live."""
        live = 0
        trained = self._trained(LocalFolder(Path(source), name)) if name else None
        while trained is not None and self._busy:
            trained.run[live % len(trained.run)].neg_()  # changed content is a new revision
            _, sweeping = await self._publish(name, trained, into)
            await sweeping
            live += 1
        return live

    async def _publish(self, name: str, trained: Packed, into: str) -> tuple[float, asyncio.Task[None]]:
        """Publish as an engine's trainer does, and wait until the new revision has replaced the live one.

        Returns the time at which it was written, and the task that still sweeps older revisions.
        """
        before = {each.revision for each in self.residency.states() if each.adapter == name}
        changed = asyncio.Event()
        self.residency.on_change = changed.set
        store, number = store_of(Source(into)), Name(lease=1, step=next(self._numbers))
        told, _ = await run_in_background(publish, store, name, number, trained)
        written = time.perf_counter()
        self._want(Assignment(name, told.source, Tier.DEVICE))
        sweeping = asyncio.create_task(run_in_background(sweep, store, name, number))
        while not self._reached([name], Tier.DEVICE) or self._revision(name) in before:
            changed.clear()
            async with asyncio.timeout(REACH_S):
                await changed.wait()
        return written, sweeping

    def _trained(self, folder: LocalFolder) -> Packed:
        """Read an adapter as a trainer holds it: in a slot's layout."""
        fit = Fit(modules=self._slots.modules, max_rank=self._slots.max_rank)
        return read_adapter(folder, fit, self._slots.dtype)

    def _want(self, *assignments: Assignment, anew: bool = False) -> None:
        """Want these adapters as assigned; the others as before, or not at all if `anew`."""
        self._wanted = {} if anew else self._wanted
        self._wanted |= {each.adapter: each for each in assignments}
        self.residency.want(list(self._wanted.values()))

    async def _ask(self, adapter: str, prompt: list[int], new_tokens: int, round_: Round) -> None:
        began, ended = time.perf_counter(), asyncio.get_running_loop().create_future()
        stamps: list[float] = []

        def sink(event: Event) -> None:
            if isinstance(event, Tokens):
                stamps.extend([time.perf_counter()] * len(event.token_ids))
            elif isinstance(event, Done | Failed) and not ended.done():
                ended.set_result(event)

        sampling = Sampling(max_tokens=new_tokens, seed=0, ignore_eos=True)
        if adapter:
            async with self.residency.hold(adapter) as held:
                request = Request(tuple(prompt), sampling, adapter, held.revision, held.slot, arrival=held.arrival)
                self.stepper.submit(request, sink)
                result = await ended
        else:
            self.stepper.submit(Request(tuple(prompt), sampling), sink)
            result = await ended
        if isinstance(result, Failed):
            raise result.error
        round_.add(began, stamps)

    def _revision(self, name: str) -> str:
        return self.residency.report()[name].revision

    def _reached(self, names: list[str], goal: Tier) -> bool:
        report = self.residency.report()
        for name in names:
            held = report.get(name)
            if held is not None and held.failure is not None:
                raise RuntimeError(f"{name}: {held.failure.message}")
            if held is None or held.tier.warmth < goal.warmth:
                return False
        return True


def _post(loop: asyncio.AbstractEventLoop, deliver: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(deliver)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


if __name__ == "__main__":
    serve(Engine)
