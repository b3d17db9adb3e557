"""Where too few engines are ready, their slots go to the waves of highest priority."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given

from mint_contracts.records import Place, Placement, Tier
from mint_operator.planning.engines import AWAY_GRACE_S
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedBase, ObservedWave, Snapshot
from tests.operator.calls import calls
from tests.operator.drawn_worlds import worlds
from tests.operator.worlds import KEY, base, engine, engines_of, homes, placed, snapshot, source, wave

FIRST, OLD, NEW = ["first/0", "first/1"], ["old/0", "old/1"], ["new/0", "new/1"]


def old(*engines: int) -> ObservedWave:
    return wave("old", OLD, engines=engines)


def new(*engines: int, priority: int = 1) -> ObservedWave:
    """Return a wave that comes after `old` by age."""
    return wave("new", NEW, engines=engines, priority=priority, created="2026-02-01T00:00:00Z")


def on(ordinal: int, names: list[str]) -> dict[str, list[str]]:
    """Return these adapters' homes, if all are on one engine."""
    return {name: [f"smol-{ordinal}"] for name in names}


def there(engines: Mapping[str, Sequence[int]]) -> dict[str, Placement]:
    """Return the placements of adapters on these engines."""
    found = {name: [Place(f"smol-{at}", Tier.DEVICE, "drawn") for at in on] for name, on in engines.items()}
    return {name: Placement(name, source(name), ("team/any",), tuple(places)) for name, places in found.items()}


def second(first: ObservedWave, later: ObservedWave, slots: int = 2) -> dict[str, Placement]:
    """Return the places of a wave on the first engine and of one for which a second engine is needed but lost."""
    before = placed(plan(snapshot(base(1, 2, slots), [first], [engine(0)], placements={})))
    assert homes(before) == on(0, OLD)
    views = [engine(0, dict.fromkeys(OLD, Tier.DEVICE)), engine(1, alive=False)]
    of = snapshot(base(1, 2, slots), [first, later], views, before, away_s={"smol-1": AWAY_GRACE_S + 1})
    return placed(plan(of), before)


def test_a_wave_of_higher_priority_is_served_although_the_engine_for_it_does_not_come() -> None:
    assert homes(second(old(), new())) == on(0, NEW) | on(1, OLD)


def test_among_equals_what_is_there_stays() -> None:
    assert homes(second(old(), new(priority=0))) == on(0, OLD) | on(1, NEW)


def test_only_as_many_give_way_as_have_to() -> None:
    found = homes(second(old(), new(), slots=3))
    assert [found[name] for name in NEW] == [["smol-0"], ["smol-0"]]
    assert sorted(found[name] for name in OLD) == [["smol-0"], ["smol-1"]]


def test_what_a_lost_engine_held_displaces_what_comes_after_it_and_stays_once_the_engine_is_back() -> None:
    waves, of = [old(), new()], base(2, 2, 2)
    before = placed(plan(snapshot(of, waves, [engine(0), engine(1)], placements={})))
    lost = engines_of(before["new/0"]).pop()
    views = [engine(ordinal, alive=f"smol-{ordinal}" != lost) for ordinal in range(2)]
    now = placed(plan(snapshot(of, waves, views, before, away_s={lost: AWAY_GRACE_S + 1})), before)
    assert {lost}.isdisjoint(engines_of(now["new/0"]) | engines_of(now["new/1"]))
    assert engines_of(now["old/0"]) == engines_of(now["old/1"]) == {lost}
    assert placed(plan(snapshot(of, waves, [engine(0), engine(1)], now)), now) == now


def test_nothing_gives_way_on_an_engine_that_is_not_ready() -> None:
    first = wave("first", FIRST, priority=1)
    before = there(dict.fromkeys(FIRST, (0,)) | dict.fromkeys(OLD, (1,)) | dict.fromkeys(NEW, (2,)))
    views = [engine(0), engine(1, ready=False), engine(2, alive=False)]
    of = snapshot(base(3, 3, 2), [first, old(), new()], views, before, away_s={"smol-2": AWAY_GRACE_S + 1})
    assert homes(placed(plan(of), before)) == homes(before)


@pytest.mark.parametrize(("first", "later"), [(old(0), new()), (old(), new(1))], ids=["may not go", "may not come"])
def test_copies_change_places_only_on_engines_that_their_waves_name(first: ObservedWave, later: ObservedWave) -> None:
    assert homes(second(first, later)) == on(0, OLD) | on(1, NEW)


def test_the_reasons_name_no_other_adapter() -> None:
    now = second(old(), new())
    assert {now[name].places[0].why for name in OLD} == {
        "made room on smol-0 for a copy of higher priority while smol-1 is away, or not ready"
    }
    assert {now[name].places[0].why for name in NEW} == {
        "moved from smol-1, which was away, or not ready, for too long, in place of a copy of lower priority"
    }


def lost(ordinal: int, of: ObservedBase, waves: Sequence[ObservedWave], before: Mapping[str, Placement]) -> Snapshot:
    """Return a snapshot in which that engine is lost, and all others are ready."""
    views = [engine(each, alive=each != ordinal) for each in range(of.spec.engine.replicas.max)]
    return snapshot(of, waves, views, before, away_s={f"smol-{ordinal}": AWAY_GRACE_S + 1})


def test_a_copy_that_gives_way_goes_to_a_free_slot_of_another_ready_engine() -> None:
    waves = [wave("first", ["first"], engines=(0, 2), priority=1), wave("old", ["old"])]
    before = there({"first": [2], "old": [0]})
    now = placed(plan(lost(2, base(3, 3, 1), waves, before)), before)
    assert homes(now) == {"first": ["smol-0"], "old": ["smol-1"]}


def test_a_wave_of_higher_priority_gets_all_its_copies_at_once() -> None:
    """Its second copy finds room only where one of lower priority makes it: on the lost engine, like the first."""
    waves = [wave("old", OLD, replicas=2), wave("new", ["new"], replicas=2, priority=1)]
    before = there(dict.fromkeys(OLD, (0, 1)))
    now = placed(plan(lost(2, base(3, 3, 2), waves, before)), before)
    assert engines_of(now["new"]) == {"smol-0", "smol-1"}
    assert sorted(homes(now)["old/0"] + homes(now)["old/1"]) == ["smol-0", "smol-1", "smol-2", "smol-2"]


def outage(engines: int, slots: int = 16) -> Callable[[], Plan]:
    """Return a plan while an engine is lost whose adapters may only be there and on another that is full of them."""
    low = wave("low", [f"low/{index}" for index in range((engines - 2) * slots)])
    high = wave("high", [f"high/{index}" for index in range(2 * slots)], priority=1, engines=(0, 1))
    of, waves = base(engines, engines, slots), [low, high]
    before = placed(plan(snapshot(of, waves, [engine(ordinal) for ordinal in range(engines)], placements={})))
    seen = lost(1, of, waves, before)
    known = plan(seen).known
    return lambda: plan(seen, known)


def test_copies_that_wait_are_not_compared_with_those_on_engines_that_they_may_not_use() -> None:
    few, many = (calls(outage(engines)) for engines in (4, 32))
    assert many < 3 * few


@given(worlds(["Device"]))
def test_no_copy_waits_for_a_lost_engine_that_comes_before_one_on_a_ready_engine(of: Snapshot) -> None:
    found = plan(of)
    if found.known[KEY].placed is None:
        return
    now, engines = placed(found, of.maps[KEY].state.placements), found.known[KEY].engines
    lost, ready = ({each.name for each in engines if each.lost}, {each.name for each in engines if each.ready})
    for first in now.values():
        for waits in engines_of(first) & lost:
            for other in now.values():
                may = engines_of(other) & ready - engines_of(first) if waits not in engines_of(other) else set[str]()
                assert first.priority <= other.priority or not may
