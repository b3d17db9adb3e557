"""What has to be written so that the placement map of a base says what the plan says."""

from collections.abc import Collection, Mapping

from mint_contracts.records import Assignment, BaseRecord, MapChange, MapState, Placement, WaveRecord
from mint_operator.planning.shards import flat

Assigned = Mapping[str, Mapping[str, Assignment]]  # engine -> adapter -> what it must hold


def difference(
    state: MapState,
    record: BaseRecord,
    wanted: Mapping[str, Placement],
    assigned: Assigned,
    names: Collection[str] | None = None,
    waves: Mapping[str, WaveRecord] | None = None,
) -> MapChange:
    """The change from `state` to `record`, `wanted` and `waves`; empty when the map says so already.

    `assigned` is `assignments(wanted)`. `names` are the only adapters whose placement may differ; None: any may.
    """
    waves = waves or {}
    there = flat(state.placements) if names is None else state.placements
    wanted = flat(wanted) if names is None else wanted
    names = sorted({*wanted, *there} if names is None else names)
    set_assigned, del_assigned = {}, {}
    for engine in sorted({*assigned, *state.assigned}):
        after, before = assigned.get(engine, {}), state.assigned.get(engine, {})
        if after is before or after == before:
            continue
        if new := tuple(after[name] for name in sorted(after) if before.get(name) != after[name]):
            set_assigned[engine] = new
        if gone := tuple(sorted(before.keys() - after.keys())):
            del_assigned[engine] = gone
    unknown = state.version is None  # nobody may take an unfinished map for an empty one: complete it
    return MapChange(
        base=record if unknown or state.base != record else None,
        set_placements=tuple(wanted[name] for name in names if _new(wanted.get(name), there.get(name))),
        del_placements=tuple(name for name in names if name in there and name not in wanted),
        set_assigned=set_assigned,
        del_assigned=del_assigned,
        set_waves=tuple(each for key, each in sorted(waves.items()) if state.waves.get(key) != each),
        del_waves=tuple(sorted(state.waves.keys() - waves.keys())),
    )


def cleared(state: MapState) -> MapChange:
    """The change that asks no engine to hold anything: for a base that was deleted while its engines still drain."""
    return MapChange(
        del_placements=tuple(sorted(state.placements)),
        del_waves=tuple(sorted(state.waves)),
        del_assigned={engine: tuple(sorted(names)) for engine, names in sorted(state.assigned.items()) if names},
    )


def assignments(
    wanted: Mapping[str, Placement],
    before: Mapping[str, Placement] | None = None,
    last: Assigned | None = None,
    names: Collection[str] | None = None,
) -> Assigned:
    """Placements turned around. Where only `names` differ from `before`, it goes on from `last`, made from that."""
    before, last = before or {}, last or {}
    wanted = flat(wanted) if names is None else wanted
    found = dict(last)
    own: dict[str, dict[str, Assignment]] = {}

    def of(engine: str) -> dict[str, Assignment]:
        if engine not in own:
            found[engine] = own[engine] = dict(last.get(engine, {}))
        return own[engine]

    for name in wanted if names is None else names:
        old, new = before.get(name), wanted.get(name)
        if old is new:
            continue
        for place in old.places if old else ():
            of(place.engine).pop(name, None)
        if new is None:
            continue
        for place in new.places:
            of(place.engine)[name] = Assignment(
                adapter=name,
                source=new.source,
                residency=place.residency,
                waves=new.waves,
                priority=new.priority,
                demand=place.demand,
            )
    return found


def _new(after: Placement | None, before: Placement | None) -> bool:
    return after is not None and after is not before and after != before
