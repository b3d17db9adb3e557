"""Reads that nobody waits for run on threads that give way to steps, and no read takes more than one core."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mint_contracts.source import Source
from mint_engine.background_threads import LOWER, disable_thread_teams
from mint_engine.residency.readers import Readers
from mint_engine.residency.turns import Turns
from tests.engine.changes import OFTEN, answers, change
from tests.engine.tiers import NAMES, Scene, ahead, once, own_nice, wanted
from tests.waiting import PATIENCE_S, join, until

HERE, FAR = Source("file:///nowhere"), Source("http://127.0.0.1:1/nowhere")


async def never(_: Source) -> bool:
    return False


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("source", [HERE, FAR])
async def test_each_computes_on_one_core_and_nobody_else_does_for_that(source: Source) -> None:
    readers = Readers(1, 1, never)
    for awaited in (True, False):
        assert await readers.run(source, torch.get_num_threads, awaited=awaited) == 1
    readers.close()
    assert torch.get_num_threads() == 2
    assert await asyncio.to_thread(torch.get_num_threads) == 2
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    join(later)
    assert found == [2], "nor any thread that begins after it"


@pytest.mark.usefixtures("two_threads")
def test_a_loop_that_leaves_cores_to_steps_computes_on_one_as_do_its_threads() -> None:
    async def ask() -> tuple[int, int]:
        disable_thread_teams()
        return torch.get_num_threads(), await asyncio.to_thread(torch.get_num_threads)

    found: list[tuple[int, int]] = []
    loops = threading.Thread(target=lambda: found.append(asyncio.run(ask())))
    loops.start()
    join(loops)
    assert found == [(1, 1)]
    assert torch.get_num_threads() == 2, "whoever steps has all of them"


@pytest.mark.parametrize("source", [HERE, FAR])
async def test_low_priority_reads_give_way(source: Source) -> None:
    readers, own = Readers(1, 1, never), own_nice()
    assert await readers.run(source, own_nice, awaited=True) == own
    assert await readers.run(source, own_nice, awaited=False) == min(own + LOWER, 19)
    assert await readers.run(source, own_nice, awaited=True) == own
    readers.close()
    assert own_nice() == own


@pytest.mark.parametrize("source", [HERE, FAR])
async def test_one_clients_many_reads_are_in_nobodys_way(source: Source) -> None:
    readers, gate, begun = Readers(1, 1, never), threading.Event(), list[str]()

    def read(name: str) -> None:
        begun.append(name)
        assert gate.wait(PATIENCE_S)

    async def ask(name: str, client: str) -> None:
        await readers.run(source, lambda: read(name), awaited=True, client=lambda _: client)

    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c", "d"):
            group.create_task(ask(name, "many"))
        gone = group.create_task(ask("e", "one"))
        group.create_task(ask("f", "one"))
        await until(lambda: begun)
        gone.cancel()
        await asyncio.wait({gone})
        gate.set()
    readers.close()
    assert begun == ["a", "f", "b", "c", "d"]


async def test_what_two_clients_wait_for_is_read_in_the_turn_of_the_one_who_is_next(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=4, workers=1)
    line = here.residency._readers._turns[True, True]._line
    here.loader.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(once(here, NAMES[0], "other"))
        await until(lambda: here.loader.fetches)
        waiting = []
        for name, client in [(NAMES[1], "many"), (NAMES[2], "many"), (NAMES[3], "many"), (NAMES[3], "one")]:
            waiting.append(group.create_task(once(here, name, client)))
            await until(lambda: here.residency.books.awaiting.total == len(waiting) + 1)
            await until(lambda: len(line) == min(len(waiting), 3))
        here.loader.gate.set()
    assert here.loader.fetches == [f"file://{store}/{NAMES[at]}" for at in (0, 1, 3, 2)]


async def test_a_turn_that_somebody_left_is_passed_on() -> None:
    turns, had = Turns(1), list[str]()

    async def take(name: str) -> None:
        async with turns.turn(lambda _: name):
            had.append(name)

    async with turns.turn(lambda _: "first"):
        left, waiting = asyncio.create_task(take("left")), asyncio.create_task(take("waiting"))
        await until(lambda: len(turns._line) == 2)
    left.cancel()  # it has its turn, but has not woken up yet
    await waiting
    assert had == ["waiting"]


async def test_a_new_state_of_what_is_served_is_read_beside_steps_where_it_lies_in_the_old_ones_place(
    scene: Callable[..., Scene], store: Path
) -> None:
    here, own, uri = scene(store=None, **OFTEN), own_nice(), f"file://{store}/{NAMES[0]}"
    await here.place(wanted(store, NAMES[0]))
    here.loader.nice.clear()
    new = change(store, NAMES[0], like=NAMES[1])
    await answers(here, NAMES[0], new)
    assert here.loader.nice == {uri: min(own + LOWER, 19)}


async def test_what_a_request_waits_for_does_not_give_way_as_what_waves_want_does(
    scene: Callable[..., Scene], store: Path
) -> None:
    here, own = scene(slots=4, store=Source(f"file://{store}")), own_nice()
    await here.place(wanted(store, NAMES[0]))
    await once(here, NAMES[1])
    await here.place(wanted(store, NAMES[0]) + ahead(store, NAMES[2]))
    told = [here.loader.nice[f"file://{store}/{name}"] for name in NAMES[:3]]
    assert told == [min(own + LOWER, 19), own, min(own + LOWER, 19)]
