"""Adapters whose requests never end must not keep every slot: others get theirs in turn. Only the base is tiny."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mint_contracts import errors
from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.slot_turns import SlotTerms
from tests.engine.changes import shift
from tests.engine.tiers import NAMES, Scene, once, wanted
from tests.waiting import PATIENCE_S, until

AT_ONCE = SlotTerms(hold_s=0.0)


def copy_of(here: Scene, name: str) -> Copy:
    return here.residency.books.of_adapter[name][0]


async def hold(here: Scene, name: str, until_set: asyncio.Event, client: str = "") -> str:
    async with here.residency.hold(name, client=client) as held:
        await asyncio.wait_for(until_set.wait(), PATIENCE_S)
        return held.revision


async def test_a_slot_in_use_closes_for_one_who_waits_and_its_adapters_turn_comes_again(
    scene: Callable[..., Scene],
) -> None:
    here, ends = scene(slots=1, terms=AT_ONCE), [asyncio.Event() for _ in range(3)]
    first = asyncio.create_task(hold(here, NAMES[0], ends[0]))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    other = asyncio.create_task(hold(here, NAMES[1], ends[1]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    again = asyncio.create_task(hold(here, NAMES[0], ends[2]))
    ends[0].set()
    truth = await first
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    assert not again.done()
    assert here.slots.loads == [truth, copy_of(here, NAMES[1]).revision]
    ends[2].set()
    await until(lambda: copy_of(here, NAMES[1]).closed)
    ends[1].set()
    await other
    assert await again == truth


async def test_a_slot_being_filled_closes_for_a_waiting_request_once_it_may(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, slot_wait_s=math.inf, terms=AT_ONCE), asyncio.Event()
    here.slots.gate.clear()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: not here.residency.slots.free)
    waiting = asyncio.create_task(once(here, NAMES[1]))
    await until(lambda: here.residency.slots._line)
    here.slots.gate.set()
    await until(lambda: copy_of(here, NAMES[0]).closed)
    end.set()
    await asyncio.gather(running, waiting)


async def test_a_slot_opens_when_nobody_waits_any_more(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, terms=AT_ONCE), asyncio.Event()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    waiting = asyncio.create_task(once(here, NAMES[1]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    at_the_door = asyncio.create_task(once(here, NAMES[0]))
    waiting.cancel()
    await at_the_door
    assert copy_of(here, NAMES[0]).closed is None
    end.set()
    await running


async def test_a_slot_opens_when_another_was_idle_sooner(scene: Callable[..., Scene]) -> None:
    here, ends = scene(slots=2, terms=AT_ONCE), [asyncio.Event() for _ in range(2)]
    running: list[asyncio.Task[str]] = []
    for name, end in zip(NAMES, ends, strict=False):
        running.append(asyncio.create_task(hold(here, name, end)))
        await until(lambda: len(here.slots.tenants) == len(running))
    waiting = asyncio.create_task(once(here, NAMES[2]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    ends[1].set()
    await waiting
    await once(here, NAMES[0])  # while its slot is in use, and nobody waits for it
    assert copy_of(here, NAMES[0]).closed is None
    assert len(here.slots.loads) == 3, "and it is where it was"
    ends[0].set()
    await asyncio.gather(*running)


async def test_requests_that_wait_for_a_slot_are_not_overtaken(tmp_path: Path) -> None:
    table = SlotTable(Books(HostTier(0), DiskTier(tmp_path, 0), None, 1), 1, wait_s=10.0, terms=AT_ONCE)
    copies = [Copy(name, Source(f"training:{name}"), lent=True) for name in NAMES[:3]]
    slot = await table.take(copies[0])
    assert isinstance(slot, int)
    first = asyncio.create_task(table.take(copies[1]))
    await until(lambda: table._line)
    second = asyncio.create_task(table.take(copies[2]))
    table.give_back(slot)  # the second looks for the first time before the first has woken up
    assert await first == slot
    assert not second.done()
    table.give_back(slot)
    assert await second == slot


async def test_of_new_states_only_those_that_may_replace_the_old_ones_look_again(tmp_path: Path) -> None:
    books = Books(HostTier(0), DiskTier(tmp_path, 0), None, 1)
    table = SlotTable(books, 0, wait_s=math.inf, terms=AT_ONCE)
    olds, news = ([Copy(name, Source(f"file:///{state}"), users=1) for name in NAMES[:4]] for state in ("old", "new"))
    for slot, old in enumerate(olds[:3]):
        books.current[old.adapter], old.slot = old, slot
    books.current[NAMES[3]] = olds[3]  # its slot is still being filled
    taking = [asyncio.create_task(table.take(new)) for new in news]
    await until(lambda: len(table._line) == 4)
    await until(lambda: [books.current[name] for name in NAMES[:4]] == [*news[:3], olds[3]])
    table.moved()
    assert [each.moved.is_set() for each in table._line] == [True, False, False, False], "and the first in line"
    del books.current[NAMES[2]]  # no wave wants it any more
    table.moved()
    assert [each.moved.is_set() for each in table._line] == [True, False, False, False]
    olds[3].slot = 3
    table.moved()
    await until(lambda: books.current[NAMES[3]] is news[3])
    olds[2].users = 0
    table.moved()
    assert await taking.pop(2) is olds[2]
    assert not any(each.done() for each in taking)
    for each in taking:
        each.cancel()
    await asyncio.wait(taking)


async def test_slots_go_to_the_request_that_has_waited_longest(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, terms=AT_ONCE), asyncio.Event()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    waiting: list[asyncio.Task[str]] = []
    for name in NAMES[1:5]:
        waiting.append(asyncio.create_task(once(here, name)))
        await until(lambda: len(here.residency.slots._line) == len(waiting))
    end.set()
    first, *others = await asyncio.gather(running, *waiting)
    assert here.slots.loads == [first, *others]


async def test_one_clients_many_adapters_are_in_nobodys_way(scene: Callable[..., Scene]) -> None:
    here, end, served = scene(slots=1, terms=AT_ONCE), asyncio.Event(), list[str]()
    running = asyncio.create_task(hold(here, NAMES[0], end, "many"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)

    async def ask(name: str, client: str) -> None:
        async with here.residency.hold(name, client=client):
            served.append(name)

    async def train(name: str) -> None:
        slot = await here.residency.lending.reserve(name)
        served.append(name)
        await here.residency.lending.release(slot)

    coming = [*(ask(name, "many") for name in NAMES[1:5]), ask(NAMES[5], "one"), train(NAMES[6])]
    waiting: list[asyncio.Task[None]] = []
    for each in coming:
        waiting.append(asyncio.create_task(each))
        await until(lambda: len(here.residency.slots._line) == len(waiting))
    end.set()
    await asyncio.gather(running, *waiting)
    assert served == [NAMES[at] for at in (5, 6, 1, 2, 3, 4)]


async def test_what_two_clients_wait_for_comes_in_the_turn_of_the_one_who_is_next(
    scene: Callable[..., Scene],
) -> None:
    here, end, served = scene(slots=1, terms=AT_ONCE), asyncio.Event(), list[tuple[str, str]]()
    running = asyncio.create_task(hold(here, NAMES[0], end, "other"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)

    async def ask(name: str, client: str) -> None:
        async with here.residency.hold(name, client=client):
            served.append((name, client))

    waiting: list[asyncio.Task[None]] = []
    for name, client in [(NAMES[1], "many"), (NAMES[2], "many"), (NAMES[3], "many"), (NAMES[3], "one")]:
        waiting.append(asyncio.create_task(ask(name, client)))
        await until(lambda: here.residency.books.awaiting.total == len(waiting))
        await until(lambda: len(here.residency.slots._line) == min(len(waiting), 3))
    assert [each.copy.adapter for each in here.residency.slots._in_turns()] == [NAMES[at] for at in (1, 3, 2)]
    end.set()
    await asyncio.gather(running, *waiting)
    assert served == [(NAMES[1], "many"), (NAMES[3], "many"), (NAMES[3], "one"), (NAMES[2], "many")]


async def test_an_adapter_counts_for_the_next_of_the_clients_that_wait_for_it(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, terms=AT_ONCE), asyncio.Event()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    asking = []
    for client in ("first", "second"):
        asking.append(asyncio.create_task(hold(here, NAMES[1], end, client)))
        await until(lambda: here.residency.books.awaiting.of(NAMES[1]) == len(asking))
    copy = copy_of(here, NAMES[1])
    assert copy.client({}) == copy.client({"first": 1, "second": 2}) == "first"
    assert copy.client({"first": 1}) == "second"
    asking[0].cancel()
    await until(lambda: here.residency.books.awaiting.of(NAMES[1]) == 1)
    assert copy.client({}) == "second"
    end.set()
    await asyncio.gather(running, asking[1])


async def test_only_requests_without_a_closing_slot_are_refused(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, slot_wait_s=0.05, terms=AT_ONCE), asyncio.Event()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    waiting = asyncio.create_task(once(here, NAMES[1]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    with pytest.raises(errors.Overloaded):  # it came later, and its time is up
        await once(here, NAMES[2])
    assert not waiting.done()
    end.set()
    await asyncio.gather(running, waiting)


async def test_waves_adapters_and_policies_keep_their_slots(scene: Callable[..., Scene], store: Path) -> None:
    here, end = scene(slots=2, slot_wait_s=0.05, terms=AT_ONCE), asyncio.Event()
    await here.place(wanted(store, NAMES[0]))
    running = asyncio.create_task(hold(here, NAMES[0], end))
    lent = await here.residency.lending.reserve(NAMES[1])
    with pytest.raises(errors.Overloaded, match="wanted by waves"):
        await once(here, NAMES[2])
    assert all(copy.closed is None for copy in here.residency.books.copies.values())
    end.set()
    await running
    await here.residency.lending.release(lent)


async def test_a_policy_gets_a_slot_that_tenants_never_leave(scene: Callable[..., Scene]) -> None:
    here, end = scene(slots=1, terms=AT_ONCE), asyncio.Event()
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    reserving = asyncio.create_task(here.residency.lending.reserve(NAMES[1]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    end.set()
    await running
    slot = await reserving
    assert here.slots.empty(slot)
    await here.residency.lending.release(slot)


async def test_a_policy_does_not_take_the_slot_of_what_is_served_of_its_name(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=1, slot_wait_s=0.05)
    await here.place(wanted(store, NAMES[0]))
    with pytest.raises(errors.Overloaded, match="wanted by waves"):
        await here.residency.lending.reserve(NAMES[0])
    assert here.tier(NAMES[0]) is Tier.DEVICE
    assert here.residency.books.current[NAMES[0]] is copy_of(here, NAMES[0])
    await once(here, NAMES[0])


async def test_a_request_that_waited_for_a_closed_slot_gets_the_current_revision(
    scene: Callable[..., Scene], store: Path
) -> None:
    here, end = scene(slots=1, store=None, terms=AT_ONCE), asyncio.Event()
    versions = {each: wanted(store, NAMES[0], tier=Tier.DISK, version=each) for each in "12"}
    other = wanted(store, NAMES[1], tier=Tier.DISK)
    here.residency.want(versions["1"] + other)
    running = asyncio.create_task(hold(here, NAMES[0], end))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    waiting = asyncio.create_task(once(here, NAMES[1]))
    await until(lambda: copy_of(here, NAMES[0]).closed)
    at_the_door = asyncio.create_task(once(here, NAMES[0]))
    shift(store / NAMES[0])
    here.residency.want(versions["2"] + other)
    await until(lambda: here.residency.report()[NAMES[0]].source.revision == "2")
    end.set()
    old = await running
    await waiting
    assert await at_the_door != old
