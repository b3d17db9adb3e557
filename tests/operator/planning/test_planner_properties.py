"""Properties of every plan: nothing over capacity, nothing moved without need, and every refusal has a reason."""

from collections import Counter
from collections.abc import Mapping

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import MapState, Place, Placement, Tier
from mint_contracts.resources import Residency
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import ObservedBase, ObservedWave, Snapshot
from tests.operator.drawn_worlds import NAMES, RESIDENCIES, bases, most_in_slots, some_waves, worlds
from tests.operator.worlds import KEY, base, engine, placed, snapshot, source, wave, written

COLD: list[Residency] = ["Device", "Host", "Host", "Disk", "Disk"]


def after(of: Snapshot) -> dict[str, Placement]:
    return placed(plan(of), of.maps[KEY].state.placements)


def desired(found: Plan) -> int:
    return found.base_statuses[KEY].engines.desired


def with_map(of: Snapshot, placements: Mapping[str, Placement]) -> Snapshot:
    known = msgspec.structs.replace(of.maps[KEY], state=MapState(1, None, dict(placements), {}))
    return msgspec.structs.replace(of, maps={KEY: known})


def with_sizes(of: Snapshot, sizes: Mapping[str, Size]) -> Snapshot:
    """Return the snapshot with these adapters' sizes, as reported by engines."""
    return msgspec.structs.replace(of, maps={KEY: msgspec.structs.replace(of.maps[KEY], sizes=sizes)})


@given(worlds())
def test_no_engine_is_given_more_device_copies_than_it_has_slots(of: Snapshot) -> None:
    assert most_in_slots(after(of)) <= of.bases[KEY].spec.adapters.device_slots


@given(worlds(COLD), st.data())
@settings(max_examples=200)
def test_no_engine_is_given_more_bytes_than_it_has_beside_what_trains_there(
    of: Snapshot, data: st.DataObject
) -> None:
    """This covers adapters of known size, and maps that already place more than there is room for now."""
    room = 1 << 20
    bytes_of = st.sampled_from([0, 1, room // 4, room // 4 + 1, room // 2, room, room + 1])
    sizes = {name: Size(8, data.draw(bytes_of)) for name in NAMES if data.draw(st.booleans())}
    limited = msgspec.structs.replace(of.bases[KEY], host_bytes=room, disk_bytes=room)
    views = [
        view
        if view.record is None
        else msgspec.structs.replace(
            view,
            record=msgspec.structs.replace(
                view.record, training_bytes=data.draw(st.sampled_from([0, 0, room // 2, room + 1]))
            ),
        )
        for view in of.maps[KEY].engines
    ]
    known = msgspec.structs.replace(of.maps[KEY], engines=tuple(views), sizes=sizes)
    of = msgspec.structs.replace(of, bases={KEY: limited}, maps={KEY: known})
    trains = {view.engine: min(view.record.training_bytes, room) for view in views if view.record is not None}
    change = plan(of).changes[KEY]
    for name, assigned in written(msgspec.structs.replace(known.state, assigned={}), change).assigned.items():
        taken = Counter({Tier.HOST: trains.get(name, 0)})
        for each in assigned.values():
            taken[each.residency] += sizes.get(each.adapter, Size(0)).bytes
        assert taken[Tier.HOST] <= room
        assert taken[Tier.DISK] <= room, "what is brought there ahead of time included"


@given(st.integers(2, 4), st.integers(1, 3), st.data())
def test_a_map_that_crowds_engines_is_brought_within_their_slots(
    engines: int, slots: int, data: st.DataObject
) -> None:
    """This happens after deviceSlots was lowered."""
    names = [f"x/{index}" for index in range(data.draw(st.integers(slots + 1, engines * slots)))]
    before = {
        name: Placement(name, source(name), ("team/one",), (Place("smol-0", Tier.DEVICE, "drawn"),)) for name in names
    }
    now = placed(plan(snapshot(base(engines, engines, slots), [wave("one", names)], placements=before)), before)
    assert most_in_slots(now) <= slots
    assert all(len(now[name].places) == 1 for name in names)
    assert sum(now[name] == before[name] for name in names) == slots


@given(worlds())
def test_engines_stay_within_bounds_and_places_on_engines_that_should_be(of: Snapshot) -> None:
    found, replicas = plan(of), of.bases[KEY].spec.engine.replicas
    assert replicas.min <= desired(found) <= replicas.max
    allowed = {f"smol-{ordinal}" for ordinal in range(desired(found))}
    for placement in after(of).values():
        engines = [place.engine for place in placement.places]
        assert set(engines) <= allowed
        assert len(set(engines)) == len(engines)


@given(worlds())
def test_every_wanted_copy_is_placed_or_its_reason_is_stated(of: Snapshot) -> None:
    found, placements = plan(of), after(of)
    for each in of.waves:
        status = found.wave_statuses[each.meta.key]
        conditions = {condition.type: condition for condition in status.conditions}
        assert all(condition.reason for condition in conditions.values())
        if conditions["Admitted"].status == "False":
            assert conditions["Admitted"].message
            continue
        copies = [len(placements[name].places) for name in each.spec.adapters.names]
        short = any(count < each.spec.serve.replicas for count in copies)
        assert (conditions["Placed"].status == "False") == short
        if not any(view.record is None for view in of.maps[KEY].engines):
            assert not short, "with every engine there, what is admitted fits"


@given(worlds())
def test_a_wave_is_admitted_whole_or_not_at_all(of: Snapshot) -> None:
    found, placements = plan(of), after(of)
    admitted = [
        each
        for each in of.waves
        if next(c for c in found.wave_statuses[each.meta.key].conditions if c.type == "Admitted").status == "True"
    ]
    assert set(placements) == {name for each in admitted for name in each.spec.adapters.names}
    for name, placement in placements.items():
        assert set(placement.waves) == {each.meta.key for each in admitted if name in each.spec.adapters.names}


@given(worlds())
def test_the_same_snapshot_gives_the_same_plan(of: Snapshot) -> None:
    assert plan(of) == plan(of)
    shuffled = msgspec.structs.replace(of, waves=tuple(reversed(of.waves)))
    assert plan(shuffled).changes == plan(of).changes


@given(worlds())
def test_a_plan_that_was_carried_out_leaves_nothing_to_move(of: Snapshot) -> None:
    once = after(of)
    again = placed(plan(with_map(of, once)), once)
    assert again == once


@given(bases(), some_waves(), st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
def test_a_new_wave_of_single_copies_moves_nothing_that_is_there(
    of: ObservedBase, waves: list[ObservedWave], names: list[str]
) -> None:
    before = placed(plan(snapshot(of, waves)))
    newest = wave("newest", names, created="2027-01-01T00:00:00Z", priority=-2)
    now = placed(plan(snapshot(of, [*waves, newest], placements=before)), before)
    for name, placement in before.items():
        tiers = {place.residency for place in placement.places}
        if name in names and tiers != {Tier.DEVICE}:
            continue  # it needs a slot now, which its engine may lack
        stayed = {place.engine for place in placement.places} & {place.engine for place in now[name].places}
        assert len(stayed) == len(placement.places)


@given(bases(), some_waves(), st.data())
def test_when_waves_go_the_copies_of_the_others_stay_unless_their_engine_goes(
    of: ObservedBase, waves: list[ObservedWave], data: st.DataObject
) -> None:
    first = plan(snapshot(of, waves))
    before = placed(first)
    refused = {key for key, status in first.wave_statuses.items() if status.phase != "Placing"}
    left = [each for each in waves if each.meta.key not in refused and data.draw(st.booleans())]
    second = plan(snapshot(of, left, placements=before))
    allowed = {f"smol-{ordinal}" for ordinal in range(desired(second))}
    for name, placement in placed(second, before).items():
        could = [place.engine for place in before[name].places if place.engine in allowed]
        kept = {place.engine for place in placement.places} & set(could)
        room = 1 if desired(second) < desired(first) else 0  # engines that go may need another to make room
        assert len(kept) >= min(len(could), len(placement.places)) - room


@given(st.integers(2, 6), st.integers(1, 8), st.data())
def test_when_an_engine_is_lost_only_its_own_adapters_move(engines: int, slots: int, data: st.DataObject) -> None:
    of = base(engines, engines, slots)
    count = data.draw(st.integers(1, (engines - 1) * slots))
    waves = [wave("one", [f"x/{index}" for index in range(count)])]
    before = placed(plan(snapshot(of, waves)))
    dead = f"smol-{data.draw(st.integers(0, engines - 1))}"
    views = [engine(ordinal, alive=f"smol-{ordinal}" != dead) for ordinal in range(engines)]
    now = placed(plan(snapshot(of, waves, views, placements=before, away_s={dead: 60.0})), before)
    moved = [name for name in before if before[name].places != now[name].places]
    assert moved == [name for name in before if before[name].places[0].engine == dead]
    assert all(now[name].places[0].engine != dead for name in now)


@given(st.integers(1, 5), st.sampled_from(RESIDENCIES), st.data())
def test_a_fresh_wave_leaves_engines_apart_by_no_more_than_its_largest_adapter(
    engines: int, residency: Residency, data: st.DataObject
) -> None:
    """Each copy goes to the least loaded engine: by ranks, which cost step time, for slots, and by bytes otherwise.

    So adapters of one size are spread as evenly as possible, to the copy.
    """
    names = [f"x/{index}" for index in range(data.draw(st.integers(1, 24)))]
    alike, replicas = data.draw(st.booleans()), data.draw(st.integers(1, engines))
    sizes = {
        name: Size(8, 1 << 10) if alike else Size(data.draw(st.integers(1, 64)), data.draw(st.integers(1, 1 << 12)))
        for name in names
    }
    of = snapshot(base(engines, engines, len(names)), [wave("one", names, replicas=replicas, residency=residency)])
    found = placed(plan(with_sizes(of, sizes)))
    weights, copies = (Counter({f"smol-{ordinal}": 0 for ordinal in range(engines)}) for _ in range(2))

    def weight(name: str) -> int:
        return sizes[name].rank if residency == "Device" else sizes[name].bytes

    for name, placement in found.items():
        assert len(placement.places) == replicas
        for place in placement.places:
            weights[place.engine] += weight(name)
            copies[place.engine] += 1
    assert max(weights.values()) - min(weights.values()) <= max(map(weight, names))
    assert not alike or max(copies.values()) - min(copies.values()) <= 1


@given(worlds())
@settings(max_examples=50)
def test_what_is_written_turns_the_map_into_what_is_wanted(of: Snapshot) -> None:
    """Assignments are the placements grouped by engine, and planning again writes nothing."""
    change = plan(of).changes.get(KEY)
    assert change is not None  # the map had no base record yet
    assigned = {engine: {each.adapter for each in records} for engine, records in change.set_assigned.items()}
    for name, placement in after(of).items():
        assert placement.source == source(name)
        assert all(name in assigned[place.engine] for place in placement.places)


@given(st.integers(2, 3), st.integers(1, 4), st.data())
def test_adapters_that_just_fit_are_placed_wherever_others_are(engines: int, slots: int, data: st.DataObject) -> None:
    """Even with full engines and copies that may not share one, there is a way, with one move per copy."""
    singles = data.draw(st.integers(0, engines * slots - 2))
    replicas = min(engines, engines * slots - singles)
    homes_of = [ordinal for ordinal in range(engines) for _ in range(slots)]
    before = {
        f"x/{index}": Placement(
            adapter=f"x/{index}",
            source=source(f"x/{index}"),
            waves=("team/one",),
            places=(Place(engine=f"smol-{ordinal}", residency=Tier.DEVICE, why="drawn"),),
        )
        for index, ordinal in zip(range(singles), homes_of, strict=False)
    }
    waves = [wave("two", ["y/0"], replicas=replicas)] + ([wave("one", list(before))] if before else [])
    now = placed(plan(snapshot(base(engines, engines, slots), waves, placements=before)), before)
    assert len(now["y/0"].places) == replicas
    assert sum(before[name].places != now[name].places for name in before) <= replicas
