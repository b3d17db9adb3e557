"""Random schedules over an engine that loads, hands over and evicts, against a naive one that has all in memory.

Six adapters of several ranks share three slots, and budgets that hold only some of them; clients come and leave,
waves want and release, sources change. Every request gets the tokens of the revision that it began with, which is one
of its adapter's; after each step the books of the scheduler and of residency balance, and slots hold their tenants'
bytes.
"""

import asyncio
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mint_contracts.errors import Overloaded
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters import mapped
from mint_engine.adapters.check import Fit
from mint_engine.build import build
from mint_engine.model import lean
from mint_engine.requests.events import Done, Failed, Tokens
from mint_engine.requests.inbox import CompletionEvent, Inbox, Queued, budget
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.request import CheckedRequest
from mint_engine.residency import climb, metrics
from mint_engine.residency.copies import Copy
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.limits import ResidencyLimits
from mint_engine.residency.loading import Loader
from mint_engine.residency.reading import LostBlock
from mint_engine.residency.residency import Residency
from mint_engine.residency.slot_turns import SlotTerms
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.life import run_request
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.scheduler import Limits, Scheduler
from mint_engine.scheduling.stepper import Cancelled, Stepper
from tests.engine.halting import Halting
from tests.engine.naive import may_choose
from tests.engine.place import Place
from tests.engine.running import save_adapter, save_base, settings_for

CONTEXT, PAGES, SLOTS, MAX_RANK = 96, 8, 3, 8
LIMITS = Limits(running=4, step_tokens=24)
RANKS = {"a": 8, "b": 3, "c": 4, "d": 7, "e": 1, "f": 5}  # of the adapters; each has two revisions
TARGETS = {0: ("q_proj", "v_proj", "down_proj"), 1: ("q_proj", "k_proj", "up_proj")}  # of a revision
DISK_FILES, HOST_FILES = 3, 1.5  # of the largest adapters
ROUNDS_QUIET = 12  # turns of the event loop without work, after which nothing moves any more
NEVER = SlotTerms(hold_s=0.0, late_s=math.inf)  # a waiting request closes a slot at once, and no clock decides
PROMPTS = [tuple(range(5 + 40 * at, 5 + 40 * at + length)) for at, length in enumerate((3, 17, 33))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    base = save_base(root / "base")
    revisions = {
        (name, number): save_adapter(base, root / f"{number}" / name, rank=rank, targets=targets)
        for number, targets in TARGETS.items()
        for name, rank in RANKS.items()
    }
    token_bytes = 2 * 2 * 2 * 16 * 4  # keys and values of two layers, each of two heads of 16 floats
    few = (PAGES + 1) * PAGE_TOKENS * token_bytes
    options = settings_for(base, context_length=CONTEXT, kv_cache_bytes=few, device_slots=SLOTS, max_rank=MAX_RANK)
    _, slots, generation = build(options, base, LIMITS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread does so little work sooner, above all beside other programs
    yield Place(base, revisions, slots, generation)
    torch.set_num_threads(threads)


@dataclass(eq=False)
class Client:
    """One request and everything sent to it."""

    asked: CheckedRequest
    inbox: Inbox = field(default_factory=lambda: Inbox(budget("tiny-0").share()))
    task: "asyncio.Task[None] | None" = None
    cancelled: bool = False

    def check(self, place: Place) -> bool:
        """Whether it was answered; checks that only the revision it began with, one of its adapter's, answered."""
        revision, tokens, ends = None, dict[int, list[int]](), dict[int, Done | Failed]()
        while not self.inbox.empty():
            told = self.inbox.get_nowait()
            if isinstance(told, Queued):
                assert revision is None
                revision = told.revision
                continue
            assert isinstance(told, CompletionEvent)
            assert told.index not in ends, "nothing comes after the end"
            if isinstance(told.event, Tokens):
                assert revision is not None, "it began first"
                tokens.setdefault(told.index, []).extend(told.event.token_ids)
            elif isinstance(told.event, Done | Failed):
                ends[told.index] = told.event
        if revision is None:
            refusals = Overloaded, LostBlock
            assert all(isinstance(end, Failed) and isinstance(end.error, refusals) for end in ends.values()), ends
            assert self.cancelled or ends
            return False
        if self.asked.adapter:
            assert place.owners[revision][0] == self.asked.adapter, "nobody gets another's adapter"
        assert len(ends) == self.asked.sampling.n
        lost = any(isinstance(end, Failed) and isinstance(end.error, LostBlock) for end in ends.values())
        for index, end in ends.items():
            own = tokens.get(index, [])
            self._check_tokens(place, revision, index, own)
            if isinstance(end, Done):
                assert len(own) == end.completion_tokens == self.asked.sampling.max_tokens
            else:
                assert isinstance(end.error, Cancelled | LostBlock)
                assert self.cancelled or (lost and not own)
        return not self.cancelled

    def _check_tokens(self, place: Place, revision: str, index: int, tokens: list[int]) -> None:
        logits = place.logits(revision, (*self.asked.prompt, *tokens))[len(self.asked.prompt) - 1 :]
        sampling = self.asked.sampling
        drawn = Sampling(sampling.max_tokens, sampling.seed + index, sampling.temperature)
        for at, token in enumerate(tokens):
            assert may_choose(logits[at], token, drawn, at)


class Schedule:
    """One engine from its first adapter to its end; each action waits until nothing moves by itself."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.versions = dict.fromkeys(RANKS, 0)
        self.clients: list[Client] = []
        for name in RANKS:
            shutil.copytree(place.revisions[name, 0], folder / "store" / name)
        place.generation.scheduler = self.scheduler = Scheduler(LIMITS, Pages(PAGES))
        self.stepper = Stepper(place.generation, lambda deliver: deliver())  # stepped here, by no thread
        slots, disk = place.slots, DiskTier(folder / "disk", DISK_FILES * place.file_bytes)
        self.loader = Loader(disk, Fit(slots.modules, MAX_RANK), slots.dtype)
        host = HostTier(int(HOST_FILES * place.file_bytes))
        store = Source(f"file://{folder}/store")
        self.memory = Halting(slots)
        self.residency = Residency(
            self.memory,
            self.loader,
            host,
            store=store,
            limits=ResidencyLimits(workers=1, slot_wait_s=math.inf, terms=NEVER, poll_s=math.inf),
        )
        self.evicted = Counter[str]()
        self.held: dict[str, frozenset[object]] = {}
        self.residency.in_flight = self.stepper.tenants
        self.residency.follows = lambda: self.stepper.follows_arrivals
        self.residency.on_change = self.residency.check
        self.residency.start()

    async def ask(self, adapter: str, prompt: tuple[int, ...], sampling: Sampling) -> None:
        number = len(self.clients)
        client = Client(CheckedRequest(f"r{number}", adapter, prompt, sampling, client=f"c{number % 3}"))
        client.task = asyncio.create_task(run_request(client.asked, self.residency, self.stepper, client.inbox))
        self.clients.append(client)
        await self.settle()

    async def cancel(self, index: int) -> None:
        left = [each for each in self.clients if each.task and not each.task.done() and not each.cancelled]
        if left:
            client = left[index % len(left)]
            client.cancelled = bool(client.task and client.task.cancel())
            await self.settle()

    async def want(self, wants: dict[str, tuple[Tier, int | None]]) -> None:
        """Let a wave want these, from the store or from where a revision is published."""
        self.residency.want(
            [
                Assignment(name, self._source(name, number), tier, priority=ord(name))
                for name, (tier, number) in wants.items()
            ]
        )
        await self.settle()

    def _source(self, name: str, number: int | None) -> Source:
        folder = self.folder / "store" / name if number is None else self.place.revisions[name, number]
        return Source(f"file://{folder}")

    async def revise(self, name: str) -> None:
        """Replace the adapter's files in the store by its other revision."""
        if self.memory.halted:
            return  # loads that wait behind it have not read their files yet
        self.versions[name] ^= 1
        new, kept = self.folder / "new", self.folder / "store" / name
        shutil.copytree(self.place.revisions[name, self.versions[name]], new)
        shutil.rmtree(kept)
        new.rename(kept)
        if await self.residency._poller._watch.look():
            self.residency._changed()
        await self.settle()

    async def step(self) -> None:
        assert self.stepper._advance(*self.stepper._empty_inbox())
        await self.settle()

    async def rest(self) -> None:
        """Step until there is nothing left to compute."""
        for _ in range(100):
            if self.stepper.follows_arrivals:
                return
            await self.step()

    async def go_on(self, *, lost: bool) -> None:
        """Let the halted load arrive, or fail it."""
        self.memory.go_on(lost=lost)
        await self.settle()

    async def finish(self) -> tuple[int, int]:
        """Check that every request is answered once waves let go; return the numbers answered and not cancelled."""
        self.memory.halts = False
        await self.go_on(lost=False)
        await self.want({})
        for _ in range(5000):
            if all(client.task is None or client.task.done() for client in self.clients):
                break
            await self.step()
        for client in self.clients:
            assert client.task is not None
            assert client.task.done()
            assert client.task.cancelled() or client.task.exception() is None
        await self.residency.close()
        self.balance()
        assert not self.stepper.tenants()
        assert not any(copy.users for copy in self.residency.books.copies.values())
        assert self.scheduler.prefix.available == PAGES
        for slot in range(SLOTS):
            self.place.slots.clear(slot)
        assert not self.place.slots.memory.any()
        answered = sum(client.check(self.place) for client in self.clients)
        return answered, sum(not client.cancelled for client in self.clients)

    async def settle(self) -> None:
        """Wait until nothing moves without a step, a client, a wave or the disk: all loads wait for these."""
        books, table, rounds = self.residency.books, self.residency.slots, 0
        async with asyncio.timeout(60):
            while rounds < ROUNDS_QUIET:
                await asyncio.sleep(0)
                still = {waiter.copy for waiter in table._line} | set(filter(_is_parting, books.loading))
                resting = books.loading == still and len(self.residency._tasks) == len(still)
                resting = resting or self.memory.halted  # by the one thread that moves adapters
                rounds = rounds + 1 if resting and not self.residency._wake.is_set() else 0
                if not resting:
                    await asyncio.sleep(0.001)  # the threads need the processor
        self.balance()

    def balance(self) -> None:
        """Check that both books balance, and that each slot holds exactly its tenant's bytes."""
        assert find_imbalance(self.scheduler) == ""
        self.residency.check()
        slots = self.place.slots
        for slot, copy in self.residency.books.in_slots.items():
            run = self.place.packed[copy.revision].run
            assert torch.equal(slots.memory[slot, : run.numel()], run)
            assert not slots.memory[slot, run.numel() :].any()
        assert not slots.memory[self.residency.slots.free].any()
        for tier in ("host", "disk"):
            held = frozenset(getattr(self.residency.books, tier).ledger.keys())
            self.evicted[tier] += bool(self.held.get(tier, held) - held)
            self.held[tier] = held


def _is_parting(copy: Copy) -> bool:
    """Whether its load has failed, and the step that reports this to its requests is still to come."""
    return copy.arrival is not None and copy.arrival.error is not None and copy.serving > 0


SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.sampled_from([1, 6, 20]),
    seed=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    n=st.sampled_from([1, 1, 2]),
    ignore_eos=st.just(True),
)
NAMES = st.sampled_from(sorted(RANKS))
TIERS = st.sampled_from([Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK])
WANTS = st.dictionaries(NAMES, st.tuples(TIERS, st.sampled_from([None, 0, 1])), min_size=1, max_size=2)


@dataclass
class Tally:
    """Totals over all schedules."""

    answered: int = 0
    asked: int = 0
    begun: int = 0
    evicted: Counter[str] = field(default_factory=Counter)


class Random(RuleBasedStateMachine):
    """Arrivals, cancellations, steps, waves and new revisions in any order; budgets evict."""

    def __init__(self, place: Place, tally: Tally) -> None:
        super().__init__()
        self.place, self.tally = place, tally
        self.folder = Path(tempfile.mkdtemp(dir=place.base.parent))
        self.loop = asyncio.Runner()
        self.schedule = self.loop.run(self._begin())

    async def _begin(self) -> Schedule:
        return Schedule(self.place, self.folder)

    @rule(adapter=NAMES, prompt=st.sampled_from(PROMPTS), sampling=SAMPLINGS)
    def ask(self, adapter: str, prompt: tuple[int, ...], sampling: Sampling) -> None:
        self.loop.run(self.schedule.ask(adapter, prompt, sampling))

    @rule(prompt=st.sampled_from(PROMPTS), sampling=SAMPLINGS)
    def ask_the_bare_base(self, prompt: tuple[int, ...], sampling: Sampling) -> None:
        self.loop.run(self.schedule.ask("", prompt, sampling))

    @rule(index=st.integers(0, 5))
    def cancel(self, index: int) -> None:
        self.loop.run(self.schedule.cancel(index))

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.loop.run(self.schedule.step())

    @rule(wants=WANTS)
    def want(self, wants: dict[str, tuple[Tier, int | None]]) -> None:
        self.loop.run(self.schedule.want(wants))

    @rule()
    def release(self) -> None:
        self.loop.run(self.schedule.want({}))

    @rule(lost=st.booleans())
    def go_on(self, lost: bool) -> None:
        self.loop.run(self.schedule.go_on(lost=lost))

    @rule(adapter=NAMES, prompt=st.sampled_from(PROMPTS), sampling=SAMPLINGS)
    def ask_when_idle(self, adapter: str, prompt: tuple[int, ...], sampling: Sampling) -> None:
        self.loop.run(self.schedule.rest())
        self.loop.run(self.schedule.ask(adapter, prompt, sampling))

    @rule(adapter=NAMES)
    def revise(self, adapter: str) -> None:
        self.loop.run(self.schedule.revise(adapter))

    def teardown(self) -> None:
        answered, asked = self.loop.run(self.schedule.finish())
        self.tally.evicted.update(self.schedule.evicted)
        self.tally.begun += self.schedule.memory.begun
        self.loop.close()
        shutil.rmtree(self.folder)
        self.tally.answered += answered
        self.tally.asked += asked


def test_random_schedules_over_adapters_that_come_and_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "COPY_THREADS", 1)  # in one order, however busy the machine is
    monkeypatch.setattr(mapped, "MAP_FROM_BYTES", 0)  # these small ones, too, arrive in parts
    monkeypatch.setattr(climb, "HUGE", 0)
    monkeypatch.setattr(lean, "PATIENCE_S", 0.0)
    vacated, closed = metrics.VACATED._value.get(), metrics.SLOTS_CLOSED._value.get()
    tally = Tally()

    class Here(Random):
        def __init__(self) -> None:
            super().__init__(place, tally)

    run_state_machine_as_test(
        Here,
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None, derandomize=True),
    )
    # Failed loads are retried by the clock, so the number refused meanwhile varies a little.
    assert tally.answered > 0.8 * tally.asked > 100
    assert min(tally.evicted["host"], tally.evicted["disk"]) > 10, "and budgets were too small"
    assert metrics.VACATED._value.get() > vacated + 50, "slots passed from one adapter to another"
    assert metrics.SLOTS_CLOSED._value.get() > closed, "some of them closed for who waited"
    assert tally.begun > 10, "requests began with a part of their adapter"
