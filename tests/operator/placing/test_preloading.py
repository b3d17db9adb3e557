"""Adapters of waiting waves are loaded ahead of their admission, at nobody's expense."""

from collections.abc import Mapping

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import Assignment, MapState, Tier
from mint_operator.placing.ahead import MOST_AN_ENGINE, SHARE
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import Snapshot
from tests.operator.worlds import KEY, base, engine, snapshot, wave

FIRST = [f"a/{index}" for index in range(4)]
LATER = [f"b/{index}" for index in range(4)]
WAVES = [wave("first", FIRST), wave("later", LATER, created="2026-02-01T00:00:00Z")]


def early(of: Plan) -> dict[str, list[str]]:
    """Return, per engine, the adapters that it is to load ahead."""
    found: dict[str, list[str]] = {}
    for name, records in of.changes[KEY].set_assigned.items():
        if names := [each.adapter for each in records if each.ahead]:
            found[name] = names
    return found


def assigned(of: Plan) -> Mapping[str, Mapping[str, Assignment]]:
    return {name: {each.adapter: each for each in records} for name, records in of.changes[KEY].set_assigned.items()}


def world(slots: int = 2) -> Snapshot:
    return snapshot(base(2, 2, slots), WAVES, [engine(0), engine(1)], placements={})


def test_a_wave_that_waits_is_brought_to_disks_evenly_and_last_of_all() -> None:
    found = plan(world())
    assert {name: len(names) for name, names in early(found).items()} == {"smol-0": 2, "smol-1": 2}
    each = assigned(found)["smol-0"][early(found)["smol-0"][0]]
    assert (each.residency, each.waves) == (Tier.DISK, ("team/later",))
    assert each.priority < -1_000_000
    assert not {placement.adapter for placement in found.changes[KEY].set_placements} & set(LATER)


def test_nothing_is_brought_for_waves_that_are_admitted_or_can_never_be() -> None:
    assert early(plan(world(slots=8))) == {}
    never = snapshot(base(1, 1, 2), [wave("never", LATER)], [engine(0)], placements={})
    assert plan(never).changes[KEY].set_assigned == {}


def test_what_was_brought_somewhere_stays_there_also_for_an_operator_that_has_just_begun() -> None:
    first = plan(world())
    state = MapState(1, None, {p.adapter: p for p in first.changes[KEY].set_placements}, assigned(first))
    waves = [WAVES[0], wave("later", LATER[1:], created="2026-02-01T00:00:00Z")]
    again = plan(snapshot(base(2, 2, 2), waves, [engine(0), engine(1)], state=state))
    change = again.changes[KEY]
    assert [name for names in change.del_assigned.values() for name in names] == [LATER[0]]
    assert not any(change.set_assigned.values())


def test_once_admitted_it_goes_where_it_was_brought() -> None:
    homes = {name: engine for engine, names in early(plan(world())).items() for name in names}
    views = [engine(n, {name: Tier.DISK for name, home in homes.items() if home == f"smol-{n}"}) for n in range(2)]
    found = plan(snapshot(base(2, 2, 2), WAVES[1:], views, placements={}))
    for placement in found.changes[KEY].set_placements:
        assert placement.places[0].engine == homes[placement.adapter]


@given(
    st.integers(1, 5), st.integers(1, 80), st.sampled_from([0, 1 << 20, 1 << 23, 1 << 27]), st.integers(0, 3)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_bounds_hold_whatever_waits(engines: int, count: int, nbytes: int, known: int) -> None:
    names = [f"x/{index}" for index in range(count)]
    of = base(engines, engines, 1)
    waves = [wave("first", [f"a/{n}" for n in range(engines)])]
    waves += [
        wave(f"later-{n}", names[n * engines : (n + 1) * engines], created="2026-02-01T00:00:00Z")
        for n in range(-(-count // engines))
    ]
    seen = snapshot(of, waves, [engine(n) for n in range(engines)], placements={})
    sizes = {name: Size(8, nbytes) for index, name in enumerate(names) if index % 4 >= known}
    found = plan(msgspec.structs.replace(seen, maps={KEY: msgspec.structs.replace(seen.maps[KEY], sizes=sizes)}))
    placed = {placement.adapter for placement in found.changes[KEY].set_placements}
    brought = [name for names in early(found).values() for name in names]
    assert len(brought) == len(set(brought)), "to one engine each"
    assert not placed & set(brought)
    for of_engine in early(found).values():
        assert len(of_engine) <= MOST_AN_ENGINE
        assert sum(sizes.get(name, Size(0)).bytes for name in of_engine) <= of.disk_bytes // SHARE
