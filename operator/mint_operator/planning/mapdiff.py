"""What must be written so that a base's placement map states what the plan says."""

from collections.abc import Collection, Container, Mapping
from typing import TypeVar

import msgspec

from mint_contracts.records import Assignment, BaseRecord, MapChange, MapState, Placement, WaveRecord
from mint_operator.planning.shards import flat

T = TypeVar("T")
R = TypeVar("R", Placement, Assignment)
Assigned = Mapping[str, Mapping[str, Assignment]]  # engine -> adapter -> what it must hold

_NOTHING: Mapping[str, Assignment] = {}


def difference(
    state: MapState,
    record: BaseRecord,
    wanted: Mapping[str, Placement],
    assigned: Assigned,
    names: Collection[str] | None,
    waves: Mapping[str, WaveRecord],
) -> MapChange:
    """Return the change from `state` to `record`, `wanted` and `waves`; empty if the map already states those.

    `assigned` is `assignments(wanted)`. `names` are the only adapters whose placement may differ; None: any may.
    """
    there = flat(state.placements) if names is None else state.placements
    wanted = flat(wanted) if names is None else wanted
    new = sorted([name for name in (wanted if names is None else names) if _new(wanted.get(name), there.get(name))])
    gone = sorted([name for name in (there if names is None else names) if name in there and name not in wanted])
    set_assigned, del_assigned = {}, {}
    differ = [name for name, each in assigned.items() if state.assigned.get(name) is not each]
    differ += state.assigned.keys() - assigned.keys()
    for engine in sorted(differ):
        after, before = assigned.get(engine, _NOTHING), state.assigned.get(engine, _NOTHING)
        if came := [name for name, each in after.items() if _new(each, before.get(name))]:
            set_assigned[engine] = tuple([after[name] for name in sorted(came)])
        if went := before.keys() - after.keys():
            del_assigned[engine] = tuple(sorted(went))
    unknown = state.version is None  # so that nobody takes an incomplete map for an empty one, complete it
    return MapChange(
        base=record if unknown else announced(state, record).base,
        set_placements=tuple([wanted[name] for name in new]),
        del_placements=tuple(gone),
        set_assigned=set_assigned,
        del_assigned=del_assigned,
        set_waves=tuple([waves[key] for key in sorted(waves) if _new(waves[key], state.waves.get(key))]),
        del_waves=tuple(sorted(state.waves.keys() - waves.keys())),
    )


def announced(state: MapState, record: BaseRecord) -> MapChange:
    """Return the change that announces a base before anything can be placed: gateways learn where its catalog is.

    Writing the record also lists the base.
    """
    return MapChange(base=None if state.listed and state.base == record else record, completes=False)


def cleared(state: MapState) -> MapChange:
    """Return the change after which no engine must hold anything, and no name is looked for in store or catalog.

    It is for a deleted base whose engines still drain, or whose pods stay behind on a node that has died.
    """
    base = None if state.base is None else msgspec.structs.replace(state.base, store=None, catalog=None)
    return MapChange(
        base=None if base == state.base else base,
        del_placements=tuple(sorted(state.placements)),
        del_waves=tuple(sorted(state.waves)),
        del_assigned={engine: tuple(sorted(names)) for engine, names in sorted(state.assigned.items()) if names},
    )


def left_by(state: MapState, there: Container[str], expired: Mapping[str, WaveRecord]) -> MapChange:
    """Return the change that removes what only waves had that are no longer `there`, and leaves all else as it is.

    Waves that have `expired` get these records.
    """
    assigned = {name: _of(each, there) for name, each in state.assigned.items()}
    placements = _of(state.placements, there)
    return MapChange(
        del_placements=tuple(sorted(state.placements.keys() - placements.keys())),
        set_waves=tuple([expired[key] for key in sorted(expired) if _new(expired[key], state.waves.get(key))]),
        del_waves=tuple(sorted(key for key in state.waves if key not in there and key not in expired)),
        del_assigned={
            name: tuple(sorted(each.keys() - assigned[name].keys()))
            for name, each in sorted(state.assigned.items())
            if len(assigned[name]) < len(each)
        },
    )


def _of(records: Mapping[str, R], there: Container[str]) -> dict[str, R]:
    return {name: each for name, each in records.items() if any(wave in there for wave in each.waves)}


def assignments(
    wanted: Mapping[str, Placement],
    before: Mapping[str, Placement] | None = None,
    last: Assigned | None = None,
    names: Collection[str] | None = None,
) -> Assigned:
    """Return placements by engine. If only `names` differ from `before`, start from `last`, that one's result."""
    before, last = before or {}, last or {}
    wanted = flat(wanted) if names is None else wanted
    found = dict(last)
    own: dict[str, dict[str, Assignment]] = {}

    def of(engine: str) -> dict[str, Assignment]:
        mine = own.get(engine)
        if mine is None:
            found[engine] = own[engine] = mine = dict(last.get(engine, _NOTHING))
        return mine

    for name in wanted if names is None else names:
        old, new = before.get(name), wanted.get(name)
        if old is new:
            continue
        if old is not None:
            for place in old.places:
                of(place.engine).pop(name, None)
        if new is not None:
            for place in new.places:
                of(place.engine)[name] = Assignment(
                    name, new.source, place.residency, new.waves, new.priority, place.demand
                )
    return found


def _new(after: T | None, before: T | None) -> bool:
    return after is not None and after is not before and after != before
