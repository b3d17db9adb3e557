"""plan(snapshot) -> Plan: the desired state, derived from the observed one. Pure: the same snapshot, same plan."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.records import EXPIRED, MapChange
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_contracts.training_records import TrainChange
from mint_operator.planning import conditions
from mint_operator.planning.adapters import unreadable
from mint_operator.planning.base_plan import BasePlan, Known, plan_base, unread_status
from mint_operator.planning.catalogs import with_catalog_owners
from mint_operator.planning.defects import Defect
from mint_operator.planning.expiry import due, expired_status
from mint_operator.planning.groups import WORKLOADS
from mint_operator.planning.lookup import may_use_base
from mint_operator.planning.manifests import Manifest, redis_secret
from mint_operator.planning.mapdiff import cleared, left_by
from mint_operator.planning.priorities import ranked
from mint_operator.planning.recall import recalled
from mint_operator.planning.refusal import ANY_ADAPTERS, NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedBase, ObservedWave, Snapshot, TrainKnown
from mint_operator.planning.wave_records import expired_records
from mint_operator.planning.wave_status import kept_status, refused_status
from mint_operator.training.diff import cleared as end_training
from mint_operator.training.diff import left_by as training_left_by


class Plan(msgspec.Struct, frozen=True):
    """What to do. It has the statuses of all objects; the applier writes only the changed ones."""

    manifests: tuple[Manifest, ...] = ()
    changes: Mapping[str, MapChange] = {}
    training: Mapping[str, TrainChange] = {}
    forgets: tuple[str, ...] = ()
    base_statuses: Mapping[str, BaseModelStatus] = {}
    wave_statuses: Mapping[str, AdapterWaveStatus] = {}
    known: Mapping[str, Known] = {}  # for the next plan
    defects: Mapping[str, Defect] = {}  # by base: errors while planning for it; for the next plan, too
    due: float | None = None  # when the passing of time changes the plan, in seconds since 1970; None: never


def plan(
    snapshot: Snapshot, before: Mapping[str, Known] | None = None, broken: Mapping[str, Defect] | None = None
) -> Plan:
    """Return the complete plan. With `before`, the last plan's `known`, it costs only what has changed.

    `broken` are the last plan's `defects`: such a base keeps what it has, and is planned from scratch a while later.

    An expired wave is treated as if it were deleted, except that its object remains, and its status and the map say
    that it expired.
    """
    before = before or {}
    waves: dict[str, list[ObservedWave]] = defaultdict(list)
    expired: dict[str, list[ObservedWave]] = defaultdict(list)
    outside: list[ObservedWave] = []
    there = recalled(snapshot)
    for wave in there:
        base = snapshot.bases.get(wave.base)
        if base is None or base.meta.deleting or not (may_use_base(wave, base) or _kept(wave, base)):
            outside.append(wave)
        elif wave.expired(snapshot.now):
            expired[wave.base].append(wave)
        else:
            waves[wave.base].append(ranked(wave, base))
    bases = {key: base for key, base in sorted(snapshot.bases.items()) if not base.meta.deleting}
    bases = with_catalog_owners(bases, snapshot.maps)
    parts, defects = _parts(snapshot, bases, waves, expired, before, broken or {})
    unread = {key: unread_status(snapshot, base) for key, base in bases.items() if base.defect}
    stuck = {
        key: conditions.kept(bases[key].status, defect.failure, bases[key].meta.generation, snapshot.now)
        for key, defect in defects.items()
    }
    statuses = {wave.meta.key: _without_base(wave, snapshot) for wave in outside}
    statuses |= {wave.meta.key: expired_status(wave, snapshot.now) for each in expired.values() for wave in each}
    statuses |= {wave.meta.key: kept_status(wave, snapshot.now) for key in unread for wave in waves.get(key, ())}
    for key, defect in defects.items():
        statuses |= {wave.meta.key: kept_status(wave, snapshot.now, defect.failure) for wave in waves.get(key, ())}
    for part in parts.values():
        statuses |= part.waves
    changes = {key: part.change for key, part in parts.items() if part.change}
    training = {key: part.training for key, part in parts.items() if part.training}
    left, ended = _expired_leftovers(snapshot, unread, expired)
    changes, training = changes | left, training | ended
    forgets, clears, ends = _removed_bases(snapshot)
    manifests = [manifest for part in parts.values() for manifest in part.manifests]
    manifests += _secrets(snapshot, bases, parts)
    repaired = {key for key, part in parts.items() if part.known.repair.now}
    return Plan(
        manifests=tuple(
            each for each in manifests if _differs(each, snapshot) or not repaired.isdisjoint(each.bases)
        ),
        changes=changes | clears,
        training=training | ends,
        forgets=forgets,
        base_statuses={key: part.status for key, part in parts.items()} | unread | stuck,
        wave_statuses=statuses,
        known={key: part.known for key, part in parts.items()},
        defects=defects,
        due=_due(there, defects, snapshot.now),
    )


def _parts(
    snapshot: Snapshot,
    bases: Mapping[str, ObservedBase],
    waves: Mapping[str, Sequence[ObservedWave]],
    expired: Mapping[str, Sequence[ObservedWave]],
    before: Mapping[str, Known],
    broken: Mapping[str, Defect],
) -> tuple[dict[str, BasePlan], dict[str, Defect]]:
    """Plan each base whose spec can be read, independently; returns the plans, and the defects of failed ones."""
    parts, defects = dict[str, BasePlan](), dict[str, Defect]()
    for key, base in bases.items():
        if base.defect:
            continue
        last = broken.get(key)
        if last is not None and last.stands(snapshot.now):
            defects[key] = last
            continue
        try:
            parts[key] = plan_base(snapshot, base, waves.get(key, ()), expired.get(key, ()), before.get(key))
        except Exception as error:  # noqa: BLE001 - a defect in one base's plan must not fail the others
            defects[key] = Defect(error, snapshot.now)
    return parts, defects


def _due(there: Sequence[ObservedWave], defects: Mapping[str, Defect], now: float) -> float | None:
    times = [each.again_at for each in defects.values()]
    ends = due(there, now)
    return min([*times, *([] if ends is None else [ends])], default=None)


def _kept(wave: ObservedWave, base: ObservedBase) -> bool:
    """Whether a wave used a base, perhaps of another namespace, before its spec and tenants became unreadable."""
    return bool(base.defect) and wave.status.phase not in {"", "Pending", "Failed", EXPIRED}


def _without_base(wave: ObservedWave, snapshot: Snapshot) -> AdapterWaveStatus:
    if wave.expired(snapshot.now):
        return expired_status(wave, snapshot.now)
    name, base = wave.spec.base_model_ref.name, snapshot.bases.get(wave.base)
    namespace = wave.base.partition("/")[0]
    message = f"no BaseModel {name} in namespace {namespace}; create it, or choose another in spec.baseModelRef"
    # The message reveals nothing about a base that the wave may not use, not even that it exists.
    if base is not None and may_use_base(wave, base):
        message = f"BaseModel {name} is being deleted"
    elif namespace != wave.meta.namespace:
        message += f"; it must also list namespace {wave.meta.namespace} in its spec.tenants"
    if wave.defect and base is None and not snapshot.redis_ok:
        return kept_status(wave, snapshot.now)  # only the map could tell which base it uses
    if wave.defect:
        message = f"{unreadable(wave)}; {message}" if name else unreadable(wave)
        return refused_status(wave, Refusal("InvalidRequest", message, mentions=ANY_ADAPTERS), snapshot.now)
    refusal = Refusal("BaseModelNotFound", message, terminal=False, mentions=NO_NAMES)
    return refused_status(wave, refusal, snapshot.now)


def _differs(manifest: Manifest, snapshot: Snapshot) -> bool:
    """Whether the live object is missing, was made from another manifest, or was changed by somebody else."""
    child = snapshot.children.get(manifest.key)
    if child is None or child.applied != manifest.digest or child.edited:
        return True
    return manifest.kind in WORKLOADS and child.replicas != manifest.body["spec"]["replicas"]


def _secrets(snapshot: Snapshot, bases: Mapping[str, ObservedBase], parts: Mapping[str, BasePlan]) -> list[Manifest]:
    """Return one Secret for each namespace whose engines need a user, a password or a CA.

    Engines of a base whose spec is unreadable or refused, or that is not planned for, keep running and need it, too.
    """
    if not snapshot.release.redis_secret:
        return []
    namespaces: dict[str, list[ObservedBase]] = defaultdict(list)
    for key, base in bases.items():
        if key not in parts or parts[key].manifests or base.workload in snapshot.children:
            namespaces[base.meta.namespace].append(base)
    return [redis_secret(bases, snapshot.release) for _, bases in sorted(namespaces.items())]


def _expired_leftovers(
    snapshot: Snapshot, unread: Iterable[str], expired: Mapping[str, Sequence[ObservedWave]]
) -> tuple[dict[str, MapChange], dict[str, TrainChange]]:
    """Return the changes that remove what ended waves left on bases whose specs cannot be read.

    Nothing else is planned for these. An expired wave gets a record if it is among `expired` or the map has one.
    """
    asked = [wave for wave in snapshot.waves if not wave.meta.deleting]
    gone = [wave for wave in asked if wave.expired(snapshot.now)]
    there = [wave for wave in asked if not wave.expired(snapshot.now)]
    runs = {(wave.meta.key, wave.meta.uid) for wave in there}
    keys, changes, ends = {key for key, _ in runs}, {}, {}
    for key in unread:
        known = snapshot.maps.get(key)
        if known is None or known.state.version is None:
            continue
        records = known.state.waves
        tell = {wave.meta.key for wave in expired.get(key, ())} | records.keys()
        recorded = [wave for wave in gone if wave.base == key and wave.meta.key in tell]
        if change := left_by(known.state, keys, expired_records(recorded, records)):
            changes[key] = change
        if end := training_left_by(snapshot.training.get(key, TrainKnown()).written, runs):
            ends[key] = end
    return changes, ends


def _removed_bases(snapshot: Snapshot) -> tuple[tuple[str, ...], dict[str, MapChange], dict[str, TrainChange]]:
    """Return the bases that only the map knows: those to forget, and those to clear while engines still drain.

    A draining engine keeps reporting; its keys can only be removed for good once it has ended.
    """
    forgets, clears, ends = [], {}, {}
    for key, known in sorted(snapshot.maps.items()):
        if key in snapshot.bases:
            continue
        pods = snapshot.pods.get(key, ())
        if pods or any(view.record is not None for view in known.engines):
            change = cleared(known.state)
            if change:
                clears[key] = change
            end = end_training(snapshot.training.get(key, TrainKnown()).written)
            if end:
                ends[key] = end
        else:
            forgets.append(key)
    return tuple(forgets), clears, ends
