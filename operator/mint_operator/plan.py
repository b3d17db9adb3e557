"""plan(snapshot) -> Plan: what should be, worked out from what is. Pure: the same snapshot gives the same plan."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.records import BaseRecord, Failure, MapChange, Placement
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_operator.adapters import Refusal, claims
from mint_operator.admission import Admission, admit
from mint_operator.base_status import BaseFacts, base_status
from mint_operator.copies import copies
from mint_operator.engines import Engine, expected
from mint_operator.manifests import Manifest, redis_secret, render, selector_text
from mint_operator.mapdiff import cleared, difference
from mint_operator.placement import Places, adopted, place
from mint_operator.snapshot import BaseMap, ObservedBase, ObservedWave, Snapshot
from mint_operator.wave_status import WaveFacts, refused_status, unknown_status, wave_status

REPORT_GRACE_S = 10.0  # after the map was lost, engines that run report again within a heartbeat or two


class Plan(msgspec.Struct, frozen=True):
    """What to do. Statuses are of every object; writing only the changed ones is the applier's part."""

    manifests: tuple[Manifest, ...] = ()
    changes: Mapping[str, MapChange] = {}
    forgets: tuple[str, ...] = ()
    base_statuses: Mapping[str, BaseModelStatus] = {}
    wave_statuses: Mapping[str, AdapterWaveStatus] = {}


class BasePlan(msgspec.Struct, frozen=True):
    """The part of a plan that concerns one base."""

    status: BaseModelStatus
    waves: Mapping[str, AdapterWaveStatus]
    manifests: tuple[Manifest, ...] = ()
    change: MapChange = MapChange()


def plan(snapshot: Snapshot) -> Plan:
    """The whole plan."""
    waves: dict[str, list[ObservedWave]] = defaultdict(list)
    for wave in snapshot.waves:
        if not wave.meta.deleting:
            waves[wave.base].append(wave)
    parts = {
        key: plan_base(snapshot, base, waves.pop(key, []))
        for key, base in sorted(snapshot.bases.items())
        if not base.meta.deleting
    }
    orphans = {wave.meta.key: _without_base(wave, snapshot) for each in waves.values() for wave in each}
    changes = {key: part.change for key, part in parts.items() if part.change}
    forgets, clears = _gone(snapshot)
    manifests = [manifest for part in parts.values() for manifest in part.manifests]
    manifests += _secrets(snapshot, parts)
    return Plan(
        manifests=tuple(manifest for manifest in manifests if _differs(manifest, snapshot)),
        changes=changes | clears,
        forgets=forgets,
        base_statuses={key: part.status for key, part in parts.items()},
        wave_statuses=orphans | {key: status for part in parts.values() for key, status in part.waves.items()},
    )


def plan_base(snapshot: Snapshot, base: ObservedBase, waves: Sequence[ObservedWave]) -> BasePlan:
    """The plan of one base and the waves over it; it depends on no other base."""
    key, now = base.meta.key, snapshot.now
    admission = admit(base, waves)
    known = snapshot.maps.get(key) if snapshot.redis_ok else None
    pods = snapshot.pods.get(key, ())
    engines = expected(base.meta.name, admission.engines, pods, known)
    refusal = _unusable(base)
    facts = BaseFacts(
        engines=engines,
        selector=selector_text(base.meta.name),
        redis_ok=known is not None,
        refusal=refusal or snapshot.apply_failures.get(key),
    )
    status = base_status(base, facts, now)
    manifests = () if refusal else render(base, snapshot.release, sorted(claims(base)), admission.engines)
    placed = None if known is None else _places(base, admission, engines, known)
    statuses = _wave_statuses(waves, admission, placed, engines, status, now)
    if known is None or placed is None:
        return BasePlan(status=status, waves=statuses, manifests=manifests)
    change = difference(known.state, _record(base), _placements(admission, placed))
    return BasePlan(status=status, waves=statuses, manifests=manifests, change=change)


def _places(base: ObservedBase, admission: Admission, engines: Sequence[Engine], known: BaseMap) -> Places | None:
    """Where every adapter goes; None while the map is lost and running engines have yet to say what they hold."""
    existing: Places = {name: placement.places for name, placement in known.state.placements.items()}
    if known.state.version is None and not existing:
        existing = {name: placement.places for name, placement in known.remembered.items()}
        silent = any(engine.pod.ready and not engine.alive for engine in engines)
        if not existing and silent and known.lost_s < REPORT_GRACE_S:
            return None
        existing = existing or adopted(engines, admission.wants)
    return place(engines, base.spec.adapters.device_slots, admission.wants, existing)


def _placements(admission: Admission, placed: Places) -> dict[str, Placement]:
    return {
        name: Placement(adapter=name, source=want.source, waves=want.waves, places=placed[name])
        for name, want in admission.wants.items()
    }


def _record(base: ObservedBase) -> BaseRecord:
    store = base.spec.adapters.store
    return BaseRecord(
        base_model=base.meta.key,
        store=store.source if store else None,
        context_length=base.spec.engine.context_length,
        device_slots=base.spec.adapters.device_slots,
        catalog=base.spec.catalog.source if base.spec.catalog else None,
    )


def _wave_statuses(
    waves: Sequence[ObservedWave],
    admission: Admission,
    placed: Places | None,
    engines: Sequence[Engine],
    base: BaseModelStatus,
    now: float,
) -> dict[str, AdapterWaveStatus]:
    """Statuses of the waves of one base; `placed` is None while the map is not known."""
    by_name = {engine.name: engine for engine in engines}
    statuses = {}
    for wave in waves:
        key = wave.meta.key
        if key in admission.refused:
            statuses[key] = refused_status(wave, admission.refused[key], now)
            continue
        wants = admission.wanted[key]
        facts = WaveFacts(wants=wants, copies=copies(wants, placed or {}, by_name), base=base)
        statuses[key] = unknown_status(wave, facts, now) if placed is None else wave_status(wave, facts, now)
    return statuses


def _without_base(wave: ObservedWave, snapshot: Snapshot) -> AdapterWaveStatus:
    if wave.defect:
        return refused_status(wave, Refusal("InvalidRequest", wave.defect), snapshot.now)
    name = wave.spec.base_model_ref.name
    said = f"no BaseModel {name} in namespace {wave.meta.namespace}; create it, or name another in spec.baseModelRef"
    if wave.base in snapshot.bases:
        said = f"BaseModel {name} is being deleted"
    return refused_status(wave, Refusal("BaseModelNotFound", said, terminal=False), snapshot.now)


def _unusable(base: ObservedBase) -> Failure | None:
    """Why no engine can be made from the spec."""
    if base.defect:
        return Failure(reason="InvalidRequest", message=base.defect, terminal=True)
    try:
        claims(base)
    except MintError as error:
        return Failure(reason=error.reason, message=str(error), terminal=True)
    return None


def _differs(manifest: Manifest, snapshot: Snapshot) -> bool:
    """Whether the live object lacks, was made from another manifest, or was scaled by somebody else."""
    child = snapshot.children.get(manifest.key)
    if child is None or child.applied != manifest.digest:
        return True
    return manifest.kind == "StatefulSet" and child.replicas != manifest.body["spec"]["replicas"]


def _secrets(snapshot: Snapshot, parts: Mapping[str, BasePlan]) -> list[Manifest]:
    """One Secret for each namespace whose engines need a password or a CA."""
    if not snapshot.release.redis_password and not snapshot.release.redis_ca:
        return []
    namespaces: dict[str, list[ObservedBase]] = defaultdict(list)
    for key, part in parts.items():
        if part.manifests:
            namespaces[snapshot.bases[key].meta.namespace].append(snapshot.bases[key])
    return [redis_secret(bases, snapshot.release) for _, bases in sorted(namespaces.items())]


def _gone(snapshot: Snapshot) -> tuple[tuple[str, ...], dict[str, MapChange]]:
    """Bases that the map knows and the API server does not: to forget, and to clear while engines still drain.

    An engine that drains goes on reporting; its keys can only be removed for good once it has ended.
    """
    forgets, clears = [], {}
    for key, known in sorted(snapshot.maps.items()):
        if key in snapshot.bases:
            continue
        pods = snapshot.pods.get(key, ())
        if pods or any(view.record is not None for view in known.engines):
            change = cleared(known.state)
            if change:
                clears[key] = change
        else:
            forgets.append(key)
    return tuple(forgets), clears
