"""Endless requests for more adapters than there are slots: each is served in its turn. Only the base is tiny."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mint_contracts import errors
from mint_contracts.source import Source
from mint_engine.residency import metrics
from mint_engine.residency.copies import Copy
from mint_engine.residency.slot_turns import SlotTerms
from tests.engine.in_process import Engine, Told, engine_of
from tests.engine.running import peft_answer, save_adapter
from tests.waiting import until

RANKS = {"hot/one": 8, "hot/two": 3, "cold": 4}
PROMPT, COUNT = (5, 17, 42), 24


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, rank in RANKS.items():
        save_adapter(base, folder / name, rank=rank)
    return folder


class Stream:
    """Endless requests for one adapter: each begins when the one before is half done, so there is always one."""

    def __init__(self, engine: Engine, adapter: str) -> None:
        self._engine, self._adapter = engine, adapter
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self.told: list[Told] = []
        self._begin()

    def _begin(self) -> None:
        self._tasks.append(asyncio.create_task(self._ask()))

    async def _ask(self) -> None:
        def heard(count: int) -> None:
            if count == COUNT // 2 and not self._ending:
                self._begin()

        self.told.append(await self._engine.ask(self._adapter, PROMPT, COUNT, heard))

    async def end(self) -> None:
        self._ending = True
        while self._tasks:
            await self._tasks.pop()


@asynccontextmanager
async def served(
    base: Path, adapters: Path, folder: Path, terms: SlotTerms, slot_wait_s: float
) -> AsyncIterator[Engine]:
    async with engine_of(
        base, folder, slots=2, max_rank=8, store=Source(f"file://{adapters}"), host=1 << 20, disk=1 << 20,
        terms=terms, slot_wait_s=slot_wait_s,
    ) as engine:  # fmt: skip
        yield engine


@asynccontextmanager
async def streaming(engine: Engine, *names: str) -> AsyncIterator[dict[str, Stream]]:
    """Endless requests for these adapters, each of which has its slot when this yields."""
    streams = {name: Stream(engine, name) for name in names}
    try:
        await until(lambda: all(stream.told for stream in streams.values()))
        yield streams
    finally:
        for stream in streams.values():
            await stream.end()


async def test_a_cold_adapter_is_served_although_two_hot_ones_never_leave_their_slots(
    base: Path, adapters: Path, tmp_path: Path
) -> None:
    truth = {name: peft_answer(base, adapters / name, PROMPT, COUNT)[0] for name in RANKS}
    assert len(set(truth.values())) == len(RANKS)
    async with (
        served(base, adapters, tmp_path, SlotTerms(hold_s=math.inf), slot_wait_s=0.3) as engine,
        streaming(engine, "hot/one", "hot/two"),
    ):
        with pytest.raises(errors.Overloaded):  # without turns it never gets a slot
            await engine.ask("cold", PROMPT, COUNT)
    async with served(base, adapters, tmp_path, SlotTerms(hold_s=0.1), slot_wait_s=0.3) as engine:
        async with streaming(engine, "hot/one", "hot/two") as streams:
            told = await engine.ask("cold", PROMPT, COUNT)
            before = {name: len(stream.told) for name, stream in streams.items()}
            await until(lambda: all(len(streams[name].told) > before[name] + 3 for name in before))
        assert told.tokens == truth["cold"]
        for name, stream in streams.items():
            assert {each.tokens for each in stream.told} == {truth[name]}


async def test_three_endless_adapters_take_turns_over_two_slots_and_keep_them_for_a_while(
    base: Path, adapters: Path, tmp_path: Path
) -> None:
    hold_s, rounds = 0.1, 4
    truth = {name: peft_answer(base, adapters / name, PROMPT, COUNT)[0] for name in RANKS}
    async with served(base, adapters, tmp_path, SlotTerms(hold_s=hold_s), slot_wait_s=60) as engine:
        vacated, began = metrics.VACATED._value.get(), time.monotonic()
        turns = dict.fromkeys(RANKS, 0)
        seat = engine.residency.books.seat

        def counted(copy: Copy, slot: int) -> None:
            turns[copy.adapter] += 1
            seat(copy, slot)

        engine.residency.books.seat = counted  # type: ignore[method-assign]
        async with streaming(engine, *RANKS) as streams:
            await until(lambda: min(turns.values()) >= rounds)
            swaps, elapsed_s = metrics.VACATED._value.get() - vacated, time.monotonic() - began
        assert swaps <= 2 * (elapsed_s / hold_s + 1), "two slots, each given up at most once in the holding time"
        for name, stream in streams.items():
            assert {each.tokens for each in stream.told} == {truth[name]}
