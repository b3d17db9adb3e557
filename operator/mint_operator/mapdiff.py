"""What has to be written so that the placement map of a base says what the plan says."""

from collections import defaultdict
from collections.abc import Mapping

from mint_contracts.records import Assignment, BaseRecord, MapChange, MapState, Placement


def difference(state: MapState, record: BaseRecord, wanted: Mapping[str, Placement]) -> MapChange:
    """The change from `state` to `record` and `wanted`; empty when the map says so already."""
    assigned = assignments(wanted)
    set_assigned, del_assigned = {}, {}
    for engine in sorted({*assigned, *state.assigned}):
        after, before = assigned.get(engine, {}), state.assigned.get(engine, {})
        if new := tuple(after[name] for name in sorted(after) if before.get(name) != after[name]):
            set_assigned[engine] = new
        if gone := tuple(sorted(before.keys() - after.keys())):
            del_assigned[engine] = gone
    unknown = state.version is None  # nobody may take an unfinished map for an empty one: complete it
    return MapChange(
        base=record if unknown or state.base != record else None,
        set_placements=tuple(wanted[name] for name in sorted(wanted) if state.placements.get(name) != wanted[name]),
        del_placements=tuple(sorted(state.placements.keys() - wanted.keys())),
        set_assigned=set_assigned,
        del_assigned=del_assigned,
    )


def cleared(state: MapState) -> MapChange:
    """The change that asks no engine to hold anything: for a base that was deleted while its engines still drain."""
    return MapChange(
        del_placements=tuple(sorted(state.placements)),
        del_assigned={engine: tuple(sorted(names)) for engine, names in sorted(state.assigned.items()) if names},
    )


def assignments(wanted: Mapping[str, Placement]) -> dict[str, dict[str, Assignment]]:
    """Placements turned around: engine -> adapter -> what it must hold."""
    found: dict[str, dict[str, Assignment]] = defaultdict(dict)
    for name, placement in wanted.items():
        for place in placement.places:
            found[place.engine][name] = Assignment(
                adapter=name, source=placement.source, residency=place.residency, waves=placement.waves
            )
    return found
