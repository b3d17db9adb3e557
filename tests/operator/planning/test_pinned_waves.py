"""Waves that name engines: as many are admitted as these engines have slots for."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import Place, Placement, Tier
from mint_contracts.resources import Residency
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedWave
from tests.operator.worlds import base, engine, homes, placed, snapshot, source, wave

ENGINES = [engine(ordinal) for ordinal in range(3)]


def found_with(*waves: ObservedWave) -> Plan:
    return plan(snapshot(base(3, 3, slots=2), waves, ENGINES))


def admitted(found: Plan) -> dict[str, tuple[str, str]]:
    """Return by wave the reason and message of its condition Admitted."""
    return {
        key.partition("/")[2]: next((c.reason, c.message) for c in each.conditions if c.type == "Admitted")
        for key, each in found.wave_statuses.items()
    }


def test_a_wave_waits_for_its_engines_and_keeps_nothing_of_others_from_those_behind_it() -> None:
    found = found_with(
        wave("a", ["a/0", "a/1"], engines=[0]),
        wave("b", ["b/0", "b/1"], engines=[0]),
        wave("c", ["c/0", "c/1", "c/2", "c/3"]),
    )
    message = (
        "needs 2 more device slots of smol-0, which waves ahead of it name; they hold 2 of 2 there; "
        "position 1 of 1 in the queue"
    )
    assert admitted(found)["b"] == ("WaitingForEngines", message)
    assert {name for name, each in admitted(found).items() if each[0] == "Admitted"} == {"a", "c"}
    assert all(len(each.places) == 1 for each in placed(found).values())


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [([0, 1], [0], True), ([0, 1], [1, 2], True), ([0], [0, 1], True), ([1], [1], False)],
)
def test_waves_that_name_some_of_the_same_engines_share_their_slots(
    first: list[int], second: list[int], fits: bool
) -> None:
    found = found_with(wave("a", ["a/0", "a/1"], engines=first), wave("b", ["b/0"], engines=second))
    assert (admitted(found)["b"][0] == "Admitted") == fits


def test_a_wave_within_the_engines_of_others_waits_where_those_are_full() -> None:
    both = wave("a", ["a/0", "a/1", "a/2"], engines=[0, 1])
    found = found_with(both, wave("b", ["b/0"], engines=[0]), wave("c", ["c/0"], engines=[1]))
    assert [admitted(found)[name][0] for name in "abc"] == ["Admitted", "Admitted", "WaitingForEngines"]
    assert admitted(found)["c"][1].startswith(
        "needs 1 more device slot of smol-0, smol-1, which waves ahead of it name;"
    )


def test_engines_are_told_by_number() -> None:
    full = wave("a", [f"a/{number}" for number in range(6)], engines=[2, 9, 10])
    found = plan(snapshot(base(11, 11, slots=2), [full, wave("b", ["b/0"], engines=[2])], ENGINES))
    assert "1 more device slot of smol-2, smol-9, smol-10, which" in admitted(found)["b"][1]


def test_an_adapter_takes_a_slot_of_engines_that_only_another_of_its_waves_names() -> None:
    found = found_with(
        wave("a", ["y"]),
        wave("b", ["y"], engines=[0], residency="Host"),
        wave("c", ["c/0", "c/1"], engines=[0]),
    )
    assert [admitted(found)[name][0] for name in "abc"] == ["Admitted", "Admitted", "WaitingForEngines"]


@pytest.mark.parametrize("order", [1, -1], ids=["wider first", "narrower first"])
def test_copies_that_the_other_engines_leave_take_slots_of_those_that_another_wave_names(order: int) -> None:
    """Two copies on two engines are one on each."""
    wider, narrower = wave("wider", ["y"], replicas=2, engines=[0, 1]), wave("narrower", ["b/0", "b/1"], engines=[0])
    low, high = (wider, narrower)[::-order]
    high = msgspec.structs.replace(high, spec=msgspec.structs.replace(high.spec, priority=1))
    found = admitted(found_with(low, high))
    assert found[high.meta.name][0] == "Admitted"
    assert found[low.meta.name][0] == "WaitingForEngines"
    fits = found_with(wider, wave("narrower", ["b/0"], engines=[0]))
    assert {each[0] for each in admitted(fits).values()} == {"Admitted"}
    assert {name: len(each.places) for name, each in placed(fits).items()} == {"y": 2, "b/0": 1}


def test_an_adapter_takes_as_many_slots_of_engines_as_any_of_its_waves_wants_copies() -> None:
    found = found_with(
        wave("a", ["y"], replicas=2),
        wave("b", ["y"], engines=[0, 1]),
        wave("c", ["c/0", "c/1", "c/2"], engines=[0, 1]),
    )
    assert [admitted(found)[name][0] for name in "abc"] == ["Admitted", "Admitted", "WaitingForEngines"]


def test_what_waves_of_the_same_engines_share_takes_its_slots_once() -> None:
    found = found_with(wave("a", ["x", "y"], engines=[0]), wave("b", ["x", "y"], engines=[0]))
    assert {each[0] for each in admitted(found).values()} == {"Admitted"}
    wider = found_with(wave("a", ["x", "y"], engines=[0]), wave("b", ["x", "y"], engines=[0, 1]))
    assert {each[0] for each in admitted(wider).values()} == {"Admitted"}


def test_a_wave_of_higher_priority_comes_before_one_that_has_its_engines() -> None:
    low, high = wave("a", ["a/0", "a/1"], engines=[0]), wave("b", ["b/0"], engines=[0], priority=1)
    before = placed(found_with(low))
    found = plan(snapshot(base(3, 3, slots=2), [low, high], ENGINES, placements=before))
    assert set(placed(found, before)) == {"b/0"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([[0], [0, 1], [0, 1, 2], [2], []]),
            st.sampled_from(["Device", "Device", "Host"]),
            st.integers(0, 3),
            st.sets(st.sampled_from(["x", "y", "z"])),
        ),
        max_size=6,
    )
)
def test_waves_whose_engines_lie_within_one_another_are_placed_if_they_are_admitted(
    asked: list[tuple[list[int], Residency, int, set[str]]],
) -> None:
    waves = [
        wave(f"w{at}", [*sorted(shared), *own], engines=engines, residency=residency)
        for at, (engines, residency, count, shared) in enumerate(asked)
        if (own := [f"w{at}/{number}" for number in range(count)]) or shared
    ]
    found = found_with(*waves)
    verdicts, there = admitted(found), placed(found)
    for each in waves:
        if verdicts[each.meta.name][0] == "Admitted":
            assert all(len(there[name].places) == 1 for name in each.spec.adapters.names)


def test_an_adapter_of_named_engines_makes_room_for_another_where_it_may() -> None:
    """Both may be on either engine; only the free slot is on the one that the other adapter is on already."""
    before = {
        "p/0": Placement("p/0", source("p/0"), ("team/p",), (Place("smol-0", Tier.DEVICE, "drawn"),)),
        "p/1": Placement("p/1", source("p/1"), ("team/p",), (Place("smol-0", Tier.DEVICE, "drawn"),)),
        "x": Placement("x", source("x"), ("team/x",), (Place("smol-1", Tier.DEVICE, "drawn"),)),
    }
    waves = [wave("p", ["p/0", "p/1"], engines=[0, 1]), wave("x", ["x"], replicas=2)]
    now = placed(plan(snapshot(base(2, 2, slots=2), waves, ENGINES[:2], placements=before)), before)
    assert len(now["x"].places) == 2
    assert sorted(homes(now)[name] for name in ["p/0", "p/1"]) == [["smol-0"], ["smol-1"]]
