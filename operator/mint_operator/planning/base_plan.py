"""The plan of one base and the waves over it. Pure; it depends on no other base.

`Known` is what the last plan of the base knew. With it, only what has changed since is recomputed, at a cost that
does not grow with the number of waves; the plan is the same as without it, which a property test checks.
"""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.records import BaseRecord, Failure, MapChange, MapState, Placement
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_contracts.training_records import TrainChange
from mint_operator.placing.ahead import Ahead, ahead, brought, merged
from mint_operator.placing.board import Limits
from mint_operator.placing.placement import Placed, Task, adopted, place
from mint_operator.planning import conditions
from mint_operator.planning.admission import Admission, admit
from mint_operator.planning.backlog import Backlogs, backlogs, of_base
from mint_operator.planning.base_status import BaseFacts, base_status
from mint_operator.planning.capacity import Demand
from mint_operator.planning.elastic import Fleet, Settled, enlarged, fleet, is_outdated, settled
from mint_operator.planning.engines import Engine, expected
from mint_operator.planning.groups import API_VERSION
from mint_operator.planning.manifests import Manifest, render, selector_text, settings_digest
from mint_operator.planning.mapdiff import Assigned, announced, assignments, difference
from mint_operator.planning.podspec import claims
from mint_operator.planning.recall import placements_of
from mint_operator.planning.repair import Repair, repair
from mint_operator.planning.rolling import roll
from mint_operator.planning.snapshot import BaseMap, ObservedBase, ObservedWave, Snapshot, TrainKnown
from mint_operator.planning.statuses import WaveStatuses, statuses
from mint_operator.planning.wave_records import Recorded, wave_records
from mint_operator.training.plan import Training, decided, prepared

CATALOG_GRACE_S = 60.0  # a catalog lost with the map is read again at about 50,000 adapters a second
_SERVES = {"Ready", "Rolling", "Degraded"}
_NOT_KNOWN = {conditions.CATALOG_UNREAD, "MapUnavailable"}
REPORT_GRACE_S = 10.0  # after the map was lost, running engines report again within a heartbeat or two


class Known(msgspec.Struct, frozen=True):
    """What a plan of a base knew, for the next plan to start from."""

    admission: Admission
    engines: tuple[Engine, ...]
    placed: Placed | None
    assigned: Assigned
    wave_statuses: WaveStatuses
    record: BaseRecord
    fleet: Fleet
    backlogs: Backlogs
    repair: Repair
    recorded: Recorded = Recorded()
    early: Ahead = {}

    def written(self, version: int) -> MapState:
        """Return the map's state once the plan's change is written."""
        placements = {} if self.placed is None else self.placed.records
        assigned = merged(self.assigned, self.early)
        return MapState(version, self.record, placements, assigned, self.recorded.records)


class BasePlan(msgspec.Struct, frozen=True):
    """The part of a plan that concerns one base."""

    status: BaseModelStatus
    waves: Mapping[str, AdapterWaveStatus]
    known: Known
    manifests: tuple[Manifest, ...]
    change: MapChange = MapChange()
    training: TrainChange = TrainChange()


def plan_base(
    snapshot: Snapshot,
    base: ObservedBase,
    waves: Sequence[ObservedWave],
    expired: Sequence[ObservedWave],
    before: Known | None,
) -> BasePlan:
    """Return the desired state of one base. Waves that are `expired` get a record that says so, and nothing else."""
    key, now = base.meta.key, snapshot.now
    known = snapshot.maps.get(key) if snapshot.redis_ok else None
    pods, live = snapshot.pods.get(key, ()), before.engines if before else ()
    refusal = _unusable(base, groups=snapshot.groups)
    settings = "" if refusal else settings_digest(base, snapshot.release)
    training = _training(snapshot, base, waves, known, live, settings)
    waves = training.waves
    last = before.admission if before else None
    sizes, taken = known.sizes if known else {}, _taken(base, training, known)
    there = placements_of(known) if known else {}
    claimed = training.claims(there) if known else {}
    admission = admit(base, waves, last, sizes, taken, training.held, claimed, there)
    running = _running(snapshot, base, before)
    bounds = base.spec.engine.replicas
    needed = max(admission.engines, training.engines, min(known.busy, bounds.max) if known else 0)
    name, unmade = base.meta.name, snapshot.unmade.get(key)
    seen = expected(name, max(running, needed), pods, known, live, unmade=unmade)
    flock = fleet(needed, running, seen, settings, now, before.fleet if before else None, admission.limits.high)
    engines = expected(name, flock.count, pods, known, live, flock.leaving, unmade) if flock.leaving else seen
    task = None if known is None else _task(base, admission, engines, known, training)
    placed = None if task is None else place(task, before.placed if before else None)
    flock = flock if placed is None else enlarged(flock, placed, admission.limits.high)
    sized = _sized(flock, placed, engines, known, training.saving, admission.limits.high, now)
    manifests = () if refusal else render(base, snapshot.release, sized.count, sized.partition)
    left = backlogs(placed.given, engines, before.backlogs if before else {}, known) if placed and known else {}
    facts = BaseFacts(
        engines=engines,
        loading=of_base(left),
        selector=selector_text(name),
        redis_ok=known is not None,
        refusal=refusal or snapshot.apply_failures.get(key),
        roll=roll(base, engines, settings, sized),
        shrinking=sized.shrinking,
    )
    status = base_status(base, facts, now)
    wave_statuses = statuses(admission, placed, engines, status, now, before.wave_statuses if before else None, left)
    assigned, record = _assigned(placed, before), _record(base, engines, known)
    recorded = wave_records(base, admission, expired, before.recorded if before else Recorded())
    early = _early(admission, placed, before, known)
    again = repair(base.meta.uid, now, before.repair if before else None, failed=key in snapshot.apply_failures)
    found = Known(admission, engines, placed, assigned, wave_statuses, record, flock, left, again, recorded, early)
    without_map = BasePlan(status=status, waves=wave_statuses.by_wave, known=found, manifests=manifests)
    if known is None:
        return without_map
    if placed is None:
        return msgspec.structs.replace(without_map, change=announced(known.state, record))
    names = placed.changed if placed.task.existing is known.state.placements else None
    wanted = merged(assigned, early)
    change = difference(known.state, record, placed.records, wanted, names, recorded.records)
    leases = decided(base, training, engines, wave_statuses, snapshot.training.get(key, TrainKnown()), now)
    return msgspec.structs.replace(without_map, change=change, training=leases)


def _running(snapshot: Snapshot, base: ObservedBase, before: Known | None) -> int:
    """Return how many engines the base has. Any that somebody else added hold nothing, and are removed at once."""
    child = snapshot.children.get(base.workload)
    running = child.replicas if child else 0
    return running if before is None else min(running, before.fleet.count)


def unread_status(snapshot: Snapshot, base: ObservedBase) -> BaseModelStatus:
    """Return the status of a base whose spec cannot be read. Its engines, placements and training stay as they are.

    A newer version wrote such a spec; its CRDs stay when it is rolled back.
    """
    known = snapshot.maps.get(base.meta.key) if snapshot.redis_ok else None
    child = snapshot.children.get(base.workload)
    count = max(1, child.replicas if child else 1, len(known.engines) if known else 1)
    facts = BaseFacts(
        engines=expected(
            base.meta.name,
            count,
            snapshot.pods.get(base.meta.key, ()),
            known,
            unmade=snapshot.unmade.get(base.meta.key),
        ),
        selector=selector_text(base.meta.name),
        redis_ok=known is not None,
        refusal=Failure(reason="InvalidRequest", message=base.defect, terminal=True),
    )
    return base_status(base, facts, snapshot.now)


def _taken(base: ObservedBase, training: Training, known: BaseMap | None) -> Demand:
    """Return what training takes from the base: slots, and the memory that engines report."""
    records = [view.record for view in known.engines if view.record is not None] if known else []
    memory = sum(min(record.training_bytes, base.host_bytes) for record in records)
    return Demand(slots=training.demand, host_bytes=memory)


def _training(
    snapshot: Snapshot,
    base: ObservedBase,
    waves: Sequence[ObservedWave],
    known: BaseMap | None,
    before: Sequence[Engine],
    settings: str,
) -> Training:
    """Return what the waves that train take of the present engines, however many there should be."""
    if all(wave.spec.train is None for wave in waves):
        return Training(waves)
    key, child = base.meta.key, snapshot.children.get(base.workload)
    views = len(known.engines) if known else 0
    count = min(max(child.replicas if child else 0, views), base.spec.engine.replicas.max)
    engines = expected(base.meta.name, count, snapshot.pods.get(key, ()), known, before)
    outdated = frozenset(engine.name for engine in engines if is_outdated(engine, settings))
    trained = snapshot.training.get(key, TrainKnown())
    return prepared(base, waves, engines, known, trained, snapshot.inputs, outdated)


def _task(
    base: ObservedBase, admission: Admission, engines: Sequence[Engine], known: BaseMap, training: Training
) -> Task | None:
    """Return what to place; None while the map is lost and engines or the catalog have yet to report again."""
    existing: Mapping[str, Placement] = known.state.placements
    if known.state.version is None and not existing:
        existing = known.remembered
        silent = any(engine.pod.ready and not engine.alive for engine in engines)
        if not existing and silent and known.lost_s < REPORT_GRACE_S:
            return None
        may_hold = silent or any(engine.held for engine in engines)  # else nobody could lose a copy
        if not existing and may_hold and _unread(admission) and known.lost_s < CATALOG_GRACE_S:
            return None
        existing = existing or adopted(engines, admission.wants)
    limits = Limits(
        slots=base.spec.adapters.device_slots,
        host_bytes=base.host_bytes,
        disk_bytes=base.disk_bytes,
        max_rank=base.spec.adapters.max_rank,
    )
    listed = admission.asks.by_wave
    return Task(
        engines,
        limits,
        admission.wants,
        existing,
        known.sizes,
        admission.turns,
        listed,
        training.reserved,
        known.demand,
    )


def _unread(admission: Admission) -> bool:
    """Whether some wave's adapters have not been looked up yet."""
    asks = admission.asks.by_wave.values()
    return any(each.refusal is not None and each.refusal.reason in _NOT_KNOWN for each in asks)


def _sized(
    flock: Fleet,
    placed: Placed | None,
    engines: Sequence[Engine],
    known: BaseMap | None,
    saving: Mapping[str, str],
    most: int,
    now: float,
) -> Settled:
    """Return the engines to run and the partition of a rolling update; neither moves while the map is not known."""
    if placed is None or known is None:
        return Settled(flock.count, 0 if flock.rolling is None else flock.rolling + 1)
    return settled(flock, placed, engines, known.away_s, saving, most, now)


def _assigned(placed: Placed | None, before: Known | None) -> Assigned:
    if placed is None:
        return {}
    if before is None or before.placed is None or placed.changed is None:
        return assignments(placed.records)
    return assignments(placed.records, before.placed.records, before.assigned, placed.changed)


def _early(admission: Admission, placed: Placed | None, before: Known | None, known: BaseMap | None) -> Ahead:
    """Return what to bring ahead for waves that wait for room, in the order in which they wait."""
    waiting = [(refusal.position, key) for key, refusal in admission.refused.items() if refusal.position]
    if placed is None or known is None or not waiting:
        return {}
    queue = [admission.wanted(key) for _, key in sorted(waiting)]
    return ahead(queue, placed, brought(known.state.assigned) if before is None else before.early)


def _record(base: ObservedBase, engines: Sequence[Engine], known: BaseMap | None) -> BaseRecord:
    store, training = base.spec.adapters.store, base.spec.training
    catalog = None if base.without_catalog else base.spec.catalog
    return BaseRecord(
        base_model=base.meta.key,
        store=store.source if store else None,
        device_slots=base.spec.adapters.device_slots,
        catalog=catalog.source if catalog else None,
        engines_max=max(base.spec.engine.replicas.min, base.spec.engine.replicas.max),
        created=int(base.meta.created_s),
        trains=training is not None,
        training=training.store.source if training else None,
        unserved=not _has_served(base, engines, known),
    )


def _has_served(base: ObservedBase, engines: Sequence[Engine], known: BaseMap | None) -> bool:
    """Whether an engine has ever been ready, as far as engines, the last status and the map tell."""
    if base.status.phase in _SERVES or any(engine.ready for engine in engines):
        return True
    told = None if known is None else known.state.base
    return told is not None and not told.unserved and told.created == int(base.meta.created_s)


def _unusable(base: ObservedBase, *, groups: bool) -> Failure | None:
    """Return why no engine can be made from the spec; None if one can."""
    nodes = base.spec.engine.nodes
    if nodes > 1 and not groups:
        message = (
            f"spec.engine.nodes is {nodes}, which needs LeaderWorkerSet, but the cluster does not have it or the "
            f"operator may not use it; install {API_VERSION} (github.com/kubernetes-sigs/lws), and upgrade the chart "
            "for the operator's permissions"
        )
        return Failure(reason=conditions.NO_LEADER_WORKER_SETS, message=message, terminal=True)
    try:
        claims(base)
    except MintError as error:
        return Failure(reason=error.reason, message=str(error), terminal=True)
    return None
