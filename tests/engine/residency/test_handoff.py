"""A new revision of a live adapter: running requests finish on the old one, later ones use the new, no pause."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from tests.engine.in_process import ANSWER_S, Engine, Told, engine_of
from tests.engine.running import packed, peft_answer, save_adapter
from tests.waiting import until

NAME, LONG, SHORT = "acme/live", 90, 12
PROMPT = (7, 21, 3, 90, 55)


@pytest.fixture(scope="module")
def revisions(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three revisions of one adapter, of different ranks and targets."""
    root = tmp_path_factory.mktemp("revisions")
    return [
        save_adapter(base, root / "1", rank=8),
        save_adapter(base, root / "2", rank=3, targets=("q_proj", "down_proj")),
        save_adapter(base, root / "3", rank=16),
    ]


@pytest.fixture(scope="module")
def truth(base: Path, revisions: list[Path]) -> list[tuple[int, ...]]:
    """What each revision answers when asked alone."""
    answers = [peft_answer(base, folder, PROMPT, LONG)[0] for folder in revisions]
    assert len({answer[:SHORT] for answer in answers}) == 3
    return answers


@pytest.fixture
async def engine(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    options = {"slots": 3, "max_rank": 16, "store": None, "host": 1 << 22, "disk": 1 << 22}
    async with engine_of(base, tmp_path, **options | getattr(request, "param", {})) as engine:
        yield engine


def publish(engine: Engine, folder: Path) -> None:
    engine.residency.want([Assignment(NAME, Source(f"file://{folder}"), Tier.DEVICE)])


def serves(engine: Engine, folder: Path) -> bool:
    held = engine.residency.report().get(NAME)
    return held is not None and held.source.uri == f"file://{folder}" and held.tier is Tier.DEVICE


class Gate:
    """Holds up an engine's loads, so that a test sees what goes on meanwhile."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open, load = threading.Event(), threading.Event(), engine.loader.load

        def held_up(source: Source) -> Packed:
            self.reached.set()
            assert self._open.wait(60)
            return load(source)

        monkeypatch.setattr(engine.loader, "load", held_up)

    def open(self) -> None:
        self._open.set()


async def served(engine: Engine, folder: Path) -> None:
    """Wait until new requests get the revision in a folder."""
    await until(lambda: serves(engine, folder))


async def begun(engine: Engine) -> asyncio.Task[Told]:
    """Start a request and wait for its first token."""
    first = asyncio.Event()
    task = asyncio.create_task(engine.ask(NAME, PROMPT, LONG, lambda _: first.set()))
    async with asyncio.timeout(ANSWER_S):
        await first.wait()
    return task


async def test_requests_in_flight_end_on_the_revision_that_they_began_with(
    engine: Engine, revisions: list[Path], truth: list[tuple[int, ...]]
) -> None:
    asked: list[tuple[int, asyncio.Task[Told]]] = []
    for number, folder in enumerate(revisions):
        publish(engine, folder)
        await served(engine, folder)
        asked += [(number, await begun(engine)) for _ in range(3)]
    for number, task in asked:
        told = await task
        assert told.tokens == truth[number]
        assert told.revision == packed(revisions[number], engine.slots).revision
    await until(lambda: len(engine.residency.slots.free) == 2)
    engine.residency.check()


async def test_nothing_pauses_while_the_new_revision_loads(
    engine: Engine, revisions: list[Path], truth: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(engine, revisions[0])
    await served(engine, revisions[0])
    gate = Gate(engine, monkeypatch)
    running = await begun(engine)
    publish(engine, revisions[1])
    await until(gate.reached.is_set)
    assert (await running).tokens == truth[0], "a request in flight goes on to its end"
    assert (await engine.ask(NAME, PROMPT, SHORT)).tokens == truth[0][:SHORT], "a new one gets the old revision"
    gate.open()
    await served(engine, revisions[1])
    assert (await engine.ask(NAME, PROMPT, SHORT)).tokens == truth[1][:SHORT]


async def test_each_request_gets_one_whole_revision_whenever_it_comes(
    engine: Engine, revisions: list[Path], truth: list[tuple[int, ...]]
) -> None:
    """Clients keep asking while revisions follow each other."""
    number_of = {packed(folder, engine.slots).revision: number for number, folder in enumerate(revisions)}
    publish(engine, revisions[0])
    await served(engine, revisions[0])
    seen: list[int] = []
    heard, stop = asyncio.Event(), asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            told = await engine.ask(NAME, PROMPT, SHORT)
            seen.append(number_of[told.revision])
            heard.set()
            assert told.tokens == truth[seen[-1]][:SHORT]

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(client())
        for number in (1, 2, 0, 2):
            publish(engine, revisions[number])
            while seen[-1:] != [number]:
                await heard.wait()
                heard.clear()
        stop.set()
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("engine", [{"slots": 1}], indirect=True)
async def test_without_a_spare_slot_the_new_revision_waits_for_the_old_ones_requests(
    engine: Engine, revisions: list[Path], truth: list[tuple[int, ...]]
) -> None:
    publish(engine, revisions[0])
    await served(engine, revisions[0])
    running = await begun(engine)
    publish(engine, revisions[1])
    await served(engine, revisions[1])
    assert (await running).tokens == truth[0]
    assert (await engine.ask(NAME, PROMPT, SHORT)).tokens == truth[1][:SHORT]


async def test_a_revision_that_is_broken_leaves_the_old_one_serving(
    engine: Engine, revisions: list[Path], truth: list[tuple[int, ...]], tmp_path: Path
) -> None:
    publish(engine, revisions[0])
    await served(engine, revisions[0])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter.mint").write_bytes(b"MINTLORA")
    publish(engine, tmp_path / "broken")
    await until(lambda: engine.residency.report()[NAME].failure is not None)
    assert engine.residency.report()[NAME].tier is Tier.DEVICE
    assert (await engine.ask(NAME, PROMPT, SHORT)).tokens == truth[0][:SHORT]
    publish(engine, revisions[2])
    await served(engine, revisions[2])
    assert (await engine.ask(NAME, PROMPT, SHORT)).tokens == truth[2][:SHORT]
