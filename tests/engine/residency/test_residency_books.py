"""The books of residency: who waits for room, and what an audit finds when they do not balance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts import errors
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.residency.audit import find_imbalance
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import CopyView, decide
from mint_engine.residency.holding import Tenant
from mint_engine.residency.load_queue import LoadQueue
from tests.engine.balance import Imbalances
from tests.engine.tiers import NAMES, Scene, once, wanted
from tests.waiting import until


def want(name: str, tier: Tier = Tier.DEVICE, **fields: Any) -> Assignment:
    return Assignment(name, Source(uri=f"file:///store/{name}"), tier, **fields)


def test_the_most_urgent_leave_the_queue_first_and_each_is_in_it_once() -> None:
    queue = LoadQueue()
    tiers = {"c": Tier.DISK, "b": Tier.DEVICE, "a": Tier.HOST, "d": Tier.DEVICE}
    for name, tier in (*tiers.items(), ("b", Tier.DEVICE)):
        queue.add(want(name, tier))
    assert (len(queue), queue.pop(0), queue.pop(-1)) == (4, set(), set())
    assert (queue.pop(2), queue.pop(1), queue.pop(9), queue.pop(1)) == ({"b", "d"}, {"a"}, {"c"}, set())
    queue.add(want("b", Tier.DISK))
    assert queue.pop(1) == {"b"}


def test_adapters_in_demand_leave_the_queue_first_then_those_of_higher_priority() -> None:
    queue = LoadQueue()
    for each in (
        want("idle"),
        want("asked", demand=0.5),
        want("first", Tier.HOST, priority=9),
        want("hot", Tier.DISK, demand=40.0),
    ):
        queue.add(each)
    queue.add(want("idle", priority=10))
    assert [queue.pop(1) for _ in range(5)] == [{"hot"}, {"asked"}, {"idle"}, {"first"}, set()]


def test_what_failed_before_and_the_others_leave_the_queue_in_turn() -> None:
    queue = LoadQueue()
    for name in "abc":
        queue.add(want(name, priority=9), failed=True)
    for name in "xy":
        queue.add(want(name))
    queue.add(want("c", priority=9))
    assert [queue.pop(1) for _ in range(5)] == [{"c"}, {"a"}, {"x"}, {"b"}, {"y"}]
    assert (len(queue), queue.pop(1)) == (0, set())


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5), st.booleans()), max_size=60), st.integers(0, 5)
)
def test_a_queue_keeps_few_entries_however_often_urgencies_change(
    asked: list[tuple[str, int, bool]], taken: int
) -> None:
    """An adapter's demand changes with every report, and those of low urgency may wait for hours."""
    queue, last = LoadQueue(), dict[str, tuple[bool, int]]()
    for name, priority, failed in asked:
        queue.add(want(name, priority=priority), failed=failed)
        last[name] = failed, -priority
        assert sum(map(len, queue._heaps.values())) <= 2 * len(queue) == 2 * len(last)
        if priority < taken and len(last) > 3:
            for gone in queue.pop(1):
                own = last.pop(gone)
                assert own[1] == min(urgent for failed, urgent in (*last.values(), own) if failed is own[0])


def test_missing_adapters_of_an_urgent_wave_do_not_keep_those_of_others_waiting() -> None:
    """One worker; the missing ones fail each time, and are due again at once."""
    missing = {f"missing-{number}": want(f"missing-{number}", priority=9) for number in range(50)}
    there = {f"there-{number}": want(f"there-{number}") for number in range(5)}
    wants, queue = {**missing, **there}, LoadQueue()
    failed, due, loads = set[str](), set(wants), list[str]()
    for _ in range(2 * len(wants)):
        names = due | queue.pop(1)
        views = [
            CopyView(name, wants[name].source, Tier.REMOTE, 0, 0, False, False, False, False, failed=name in failed)
            for name in names
        ]
        actions = decide(views, {name: wants[name] for name in names}, None, room=1)
        for name in actions.wait:
            queue.add(wants[name], failed=name in actions.retry)
        [((name, _), _)] = actions.load
        loads.append(name)
        due = {name} & missing.keys()
        failed |= due
    assert set(loads) == set(wants)


async def test_more_wants_than_workers_are_all_met(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(slots=8, store=None, workers=1)
    here.residency.want(wanted(store, *NAMES))
    await until(lambda: all(here.tier(name) is Tier.DEVICE for name in NAMES))
    assert len(here.loader.fetches) == len(NAMES)


async def test_returning_adapters_are_loaded_in_the_order_of_need(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(slots=8, store=None, workers=1)
    needs: list[dict[str, Any]] = [{}, {"priority": 5}, {"demand": 0.5}, {"demand": 8.0}]
    told = [
        msgspec.structs.replace(each, **need)
        for each, need in zip(wanted(store, *NAMES[: len(needs)]), needs, strict=True)
    ]
    here.residency.want(told)
    await until(lambda: all(here.tier(each.adapter) is Tier.DEVICE for each in told))
    assert here.loader.fetches == [each.source.uri for each in reversed(told)]
    assert here.residency.rate.per_s > 0


async def test_an_adapter_no_longer_wanted_is_not_loaded_when_its_turn_comes(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=8, store=None, workers=1)
    here.loader.gate.clear()
    here.residency.want(wanted(store, *NAMES))
    await until(lambda: here.loader.fetches)
    here.residency.want(wanted(store, NAMES[7]))
    here.loader.gate.set()
    await until(lambda: here.tier(NAMES[7]) is Tier.DEVICE)
    assert len(here.loader.fetches) == 2, "the one that was loading, and the one still wanted"


def _seat_nobody(here: Scene) -> None:
    here.residency.slots.free.append(here.residency.slots.free[0])


def _lose_a_slot(here: Scene) -> None:
    here.residency.slots.free.pop()


def _unseat(here: Scene) -> None:
    here.residency.books.in_slots.clear()


def _copy(here: Scene) -> Copy:
    return next(iter(here.residency.books.copies.values()))


def _over_release(here: Scene) -> None:
    _copy(here).users = -1


def _leak_a_hold(here: Scene) -> None:
    _copy(here).users += 1


def _leak_a_wait(here: Scene) -> None:
    here.residency.books.awaiting.enter(NAMES[1], 1)


def _serve_nobody(here: Scene) -> None:
    here.residency.books.serving += 1


def _serve_one_who_is_no_user(here: Scene) -> None:
    _copy(here).serving += 1
    here.residency.books.serving += 1


def _leave_a_tenant(here: Scene) -> None:
    here.slots.filled[here.residency.slots.free[0]] = 7


def _count_wrong(here: Scene) -> None:
    here.host.ledger.remove(here.host.ledger.keys()[0])


def _lose_a_file(here: Scene) -> None:
    for path in here.loader.disk._folder.iterdir():
        path.unlink()


def _load_nobody(here: Scene) -> None:
    here.residency.books.loading.add(_copy(here))


DEFECTS: dict[str, Callable[[Scene], None]] = {
    "slots are entered wrongly": _seat_nobody,
    "are not 3": _lose_a_slot,
    "entered as taken": _unseat,
    "has -1 users": _over_release,
    "has 1 users, where 0 are known and 0 wait": _leak_a_hold,
    "has 0 users, where 0 are known and 1 wait": _leak_a_wait,
    "1 requests are told to have a slot, and copies count 0": _serve_nobody,
    "has 0 users, where 1 are known": _serve_one_who_is_no_user,
    "free and not empty": _leave_a_tenant,
    "the host tier": _count_wrong,
    "the disk tier: lost": _lose_a_file,
    "not entered as loading": _load_nobody,
}


@pytest.mark.parametrize("told", DEFECTS)
async def test_each_defect_is_found(store: Path, tmp_path: Path, imbalances: Imbalances, told: str) -> None:
    here = Scene(tmp_path, 3, 1 << 20, Source(f"file://{store}"))
    await once(here, NAMES[0])
    here.slots.is_empty = lambda slot: here.slots.filled[slot] == 0  # type: ignore[method-assign]
    here.residency.check()
    DEFECTS[told](here)
    with pytest.raises(errors.Internal, match=told):
        here.residency.check()
    assert told in find_imbalance(here.residency.books, here.residency.slots, here.slots, busy=False)
    imbalances.planted = True
    await here.residency.close()
    assert imbalances.found == 1, "an engine that ends looks once more"


async def test_a_request_whose_slot_holds_another_revision_than_it_began_with_is_found(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    async with here.residency.hold(NAMES[0]) as held:
        right = Tenant(held.slot, NAMES[0], held.revision)
        here.residency.in_flight = lambda: frozenset({right})
        here.residency.check()
        for wrong, told in (
            (msgspec.structs.replace(right, revision="sha256:other"), f"and holds {held.revision}"),
            (msgspec.structs.replace(right, adapter=NAMES[1]), f"and holds '{NAMES[0]}'"),
            (msgspec.structs.replace(right, slot=1 - right.slot), "and holds nobody"),
        ):
            here.residency.in_flight = lambda wrong=wrong: frozenset({right, wrong})  # type: ignore[misc]
            with pytest.raises(errors.Internal, match=told):
                here.residency.check()
    here.residency.in_flight = lambda: frozenset({right})
    with pytest.raises(errors.Internal, match="is held for nobody"):
        here.residency.check()
    here.residency.in_flight = lambda: None


async def test_books_are_audited_when_an_engine_becomes_idle_however_recent_the_last_audit(
    scene: Callable[..., Scene], imbalances: Imbalances
) -> None:
    here = scene(audit_s=0.2)
    await once(here, NAMES[0])
    here.residency.on_change = lambda: None  # it would check too, and find the fault
    _leak_a_hold(here)
    await once(here, NAMES[1])
    imbalances.planted = True
    await until(lambda: imbalances.found)
    _copy(here).users -= 1


async def test_books_are_audited_after_the_last_load(
    scene: Callable[..., Scene], store: Path, imbalances: Imbalances
) -> None:
    here = scene(audit_s=0.05)
    here.residency.on_change = lambda: None
    here.loader.gate.clear()
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.loader.fetches)
    _leak_a_hold(here)
    imbalances.planted = True
    here.loader.gate.set()
    await until(lambda: imbalances.found)
    _copy(here).users -= 1


async def test_a_slot_that_is_held_for_requests_that_are_not_there_is_found(
    scene: Callable[..., Scene], imbalances: Imbalances
) -> None:
    here = scene(audit_s=0.1)
    here.residency.in_flight = frozenset
    async with here.residency.hold(NAMES[0]):
        imbalances.planted = True
        await until(lambda: imbalances.found)
