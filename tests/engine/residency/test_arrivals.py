"""Requests may begin while their adapter is read from disk: answers stay exact, and nobody else waits."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV32Config, Gemma2Config, GptOssConfig, LlamaConfig, Qwen3MoeConfig

from mint_contracts.errors import Internal, MintError, SourceUnavailable
from mint_contracts.source import Source
from mint_engine.model.forward import Forward
from mint_engine.model.lean import Lean
from mint_engine.model.span import Span
from mint_engine.requests.events import Done, Event, Failed, Tokens
from mint_engine.requests.inbox import CompletionEvent, Inbox, Queued, budget
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.request import CheckedRequest
from mint_engine.residency import remapping
from mint_engine.residency.arrival import Arrival, NotArrived
from mint_engine.residency.remapping import HUGE
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.life import run_request
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.stepper import Stepper
from tests.disk import on_disk
from tests.engine import in_process
from tests.engine.families import SIZES, SPARSE, fill, make_forward
from tests.engine.in_process import Engine, engine_of
from tests.engine.running import peft_answer, save_adapter, save_base
from tests.waiting import join, until

PROMPT, COUNT, SLOT = (7, 21, 3, 90, 55), 6, 1
NAMES = ("team/one", "team/two")
ALIKE: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
CONFIGS = {
    "dense": LlamaConfig(**SIZES | {"num_hidden_layers": 3}),
    "experts": Qwen3MoeConfig(
        **SIZES | {"num_hidden_layers": 3}, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=40
    ),
    "latent": DeepseekV32Config(**SPARSE),
    "norms behind": Gemma2Config(**SIZES | ALIKE, query_pre_attn_scalar=16),
    "experts with biases": GptOssConfig(**SIZES | ALIKE, num_local_experts=6, num_experts_per_tok=2),
}


def silent() -> Arrival:
    return Arrival(lambda: None)


def compute(forward: Forward, rows: int, arrival: Arrival | None = None) -> torch.Tensor:
    pages = list(range(1, 2 + rows // 16))
    tokens = [(5 * at) % 90 for at in range(rows)]
    return forward.run(tokens, [Span(0, rows, 0, pages, SLOT)], range(rows), arrival).clone()


class TestAStepOfOwnKernels:
    @pytest.fixture(params=CONFIGS)
    def forward(self, request: pytest.FixtureRequest) -> Forward:
        forward = make_forward(CONFIGS[request.param], lean=True)
        fill(forward.slots, SLOT, 5)
        assert forward.follows_arrivals
        return forward

    @staticmethod
    def needed(forward: Forward) -> list[int]:
        assert isinstance(forward._pass, Lean)
        found = [int(each) for each in forward._pass._needed(SLOT)]
        assert all(first < second for first, second in pairwise(found))
        assert found[-1] == forward.slots.filled[SLOT] * forward.slots.dtype.itemsize
        return found

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("rows", [5, 70])  # one team, then a team per thread
    def test_computes_to_the_bit_the_same_while_its_adapter_comes(
        self, forward: Forward, rows: int, threads: int
    ) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            whole, arrival = compute(forward, rows), silent()

            def come() -> None:
                for each in self.needed(forward):
                    arrival.reach(each)

            coming = threading.Thread(target=come)
            coming.start()
            assert torch.equal(compute(forward, rows, arrival), whole)
            join(coming)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("layers", [0, 1, 2])
    def test_ends_at_the_layer_whose_part_does_not_come(self, forward: Forward, layers: int) -> None:
        arrival = silent()
        if layers:
            arrival.reach(self.needed(forward)[layers - 1])
        forward.cache.wipe([1])
        with pytest.raises(NotArrived):
            compute(forward, 5, arrival)
        written = [bool(pool[1].any()) for pool in forward.cache.pool]
        assert written == [at < layers for at in range(3)]

    def test_ends_where_the_rest_is_lost(self, forward: Forward) -> None:
        arrival = silent()
        arrival.lose(Internal("disk", "is broken"))
        with pytest.raises(NotArrived):
            compute(forward, 5, arrival)

    def test_the_next_one_is_as_if_nothing_had_been(self, forward: Forward) -> None:
        whole = compute(forward, 5)
        with pytest.raises(NotArrived):
            compute(forward, 5, silent())
        assert torch.equal(compute(forward, 5), whole)


class Disk:
    """A disk that gives the first pieces of a file, and the others once `open` is set, or fails them if `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slow = self.broken = False
        self.gives = 1
        self.asked, self.open = threading.Event(), threading.Event()
        self._bring, self._pieces = remapping.populate_pages, 0
        monkeypatch.setattr(remapping, "populate_pages", self._piece)

    def _piece(self, address: int, nbytes: int) -> None:
        self._pieces = self._pieces + 1 if self.slow else 0
        if self._pieces > self.gives:
            self.asked.set()
            assert self.open.wait(60)
            if self.broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._bring(address, nbytes)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose adapters of rank 128 span several large pages."""
    return save_base(tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512, num_hidden_layers=3)


@pytest.fixture(scope="module")
def store(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    save_adapter(wide, root / NAMES[0], rank=128)
    save_adapter(wide, root / NAMES[1], rank=96)
    return root


@pytest.fixture(scope="module")
def truth(wide: Path, store: Path) -> dict[str, tuple[int, ...]]:
    answers = {name: peft_answer(wide, store / name, PROMPT, COUNT)[0] for name in NAMES}
    bare = peft_answer(wide, None, PROMPT, COUNT)[0]
    assert len({*answers.values(), bare}) == 3
    return {"": bare, **answers}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.open.set()


@pytest.fixture
async def engine(wide: Path, store: Path, tmp_path: Path, disk: Disk) -> AsyncIterator[Engine]:
    """An engine whose one slot holds the second adapter; the first is only on disk, which is slow from now on."""
    options: dict[str, Any] = {"slots": 1, "max_rank": 128, "host": 1, "disk": 1 << 26}
    async with engine_of(wide, on_disk(tmp_path), store=Source(f"file://{store}"), **options) as engine:
        for name in NAMES:
            await engine.ask(name, PROMPT, 1)
        [copy] = engine.residency.books.in_slots.values()
        assert copy.bytes > 2 * HUGE
        disk.slow = True
        yield engine
        disk.open.set()


async def bare(engine: Engine) -> tuple[int, ...]:
    """The bare base's answer."""
    tokens, ended = list[int](), asyncio.Event()

    def sink(event: Event) -> None:
        if isinstance(event, Tokens):
            tokens.extend(event.token_ids)
        elif isinstance(event, Done | Failed):
            ended.set()

    engine.stepper.submit(Request(PROMPT, Sampling(COUNT, 0, ignore_eos=True), slot=NO_SLOT), sink)
    async with asyncio.timeout(in_process.ANSWER_S):
        await ended.wait()
    return tuple(tokens)


async def lives(engine: Engine, inbox: Inbox) -> None:
    """Run a request for the first adapter as a client's."""
    asked = CheckedRequest("first", NAMES[0], PROMPT, Sampling(COUNT, 0, ignore_eos=True))
    await run_request(asked, engine.residency, engine.stepper, inbox)


def begun(engine: Engine) -> bool:
    """Whether a request has the slot into which the first adapter is arriving."""
    return any(copy.arrival and copy.serving for copy in engine.residency.books.in_slots.values())


@pytest.mark.parametrize("pieces", [0, 1, 2])
async def test_a_request_begins_with_what_has_come_and_is_answered_right(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]], pieces: int
) -> None:
    disk.gives = pieces
    asked = asyncio.create_task(engine.ask(NAMES[0], PROMPT, COUNT))
    await until(lambda: begun(engine) and engine.stepper.load.running)
    assert not disk.open.is_set()
    disk.open.set()
    assert (await asked).tokens == truth[NAMES[0]]
    assert [copy.arrival for copy in engine.residency.books.in_slots.values()] == [None]


async def test_requests_that_come_meanwhile_do_not_wait_for_the_adapter(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]]
) -> None:
    asked = asyncio.create_task(engine.ask(NAMES[0], PROMPT, COUNT))
    await until(lambda: begun(engine))
    assert await bare(engine) == truth[""]
    assert not asked.done()
    disk.open.set()
    assert (await asked).tokens == truth[NAMES[0]]


async def test_several_begin_with_the_same_adapter(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]]
) -> None:
    several = [asyncio.create_task(engine.ask(NAMES[0], PROMPT, COUNT)) for _ in range(3)]
    await until(lambda: engine.residency.books.serving == 3)
    disk.open.set()
    assert {each.tokens for each in await asyncio.gather(*several)} == {truth[NAMES[0]]}


async def test_a_slot_is_nobody_elses_while_an_adapter_comes_into_it(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]]
) -> None:
    """Even after its client has left."""
    inbox = Inbox(budget("tiny-0").share())
    life = asyncio.create_task(lives(engine, inbox))
    await until(lambda: begun(engine))
    life.cancel()
    await asyncio.wait({life})
    assert isinstance(inbox.get_nowait(), Queued)
    other = asyncio.create_task(engine.ask(NAMES[1], PROMPT, COUNT))
    assert await bare(engine) == truth[""]
    assert not other.done()
    disk.open.set()
    assert (await other).tokens == truth[NAMES[1]]


@pytest.mark.parametrize("pieces", [0, 1])
async def test_an_adapter_that_never_comes_fails_only_its_own_requests(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]], pieces: int
) -> None:
    disk.gives = pieces
    several = [asyncio.create_task(fails(engine)) for _ in range(2)]
    await until(lambda: engine.residency.books.serving == 2)
    disk.broken = True
    disk.open.set()
    for error in await asyncio.gather(*several):
        assert isinstance(error, SourceUnavailable)
        assert "this engine's disk" in str(error)
    assert await bare(engine) == truth[""]
    disk.broken = False
    await until(lambda: not engine.residency.books.loading)
    assert not engine.residency.books.in_slots
    assert engine.slots.is_empty(0)
    assert not engine.slots.memory.any()
    assert (await engine.ask(NAMES[1], PROMPT, COUNT)).tokens == truth[NAMES[1]]


async def fails(engine: Engine) -> MintError:
    inbox = Inbox(budget("tiny-0").share())
    await lives(engine, inbox)
    assert isinstance(inbox.get_nowait(), Queued)
    told = inbox.get_nowait()
    assert isinstance(told, CompletionEvent)
    assert isinstance(told.event, Failed)
    return told.event.error


async def test_an_engine_that_computes_anything_waits_for_all_of_an_adapter(engine: Engine) -> None:
    """A request that followed its adapter's arrival would take a step of its own, which would keep others waiting."""
    stepper = Stepper(engine.stepper._generation, lambda deliver: None)  # not started, so it computes nothing
    assert stepper.follows_arrivals
    stepper.submit(Request(PROMPT, Sampling(1, 0), slot=NO_SLOT), lambda event: None)
    assert not stepper.follows_arrivals


async def test_an_engine_that_begins_to_compute_while_an_adapter_comes_waits_for_all_of_it(
    engine: Engine, disk: Disk, truth: dict[str, tuple[int, ...]]
) -> None:
    looks = iter([True])
    engine.residency.follows = lambda: next(looks, False)
    asked = asyncio.create_task(engine.ask(NAMES[0], PROMPT, COUNT))
    await until(disk.asked.is_set)
    assert await bare(engine) == truth[""]
    assert not engine.residency.books.in_slots
    disk.open.set()
    assert (await asked).tokens == truth[NAMES[0]]
