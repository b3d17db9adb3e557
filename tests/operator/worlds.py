"""Small worlds for the planner: a base, its waves, and engines that report what they hold."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import (
    Bringing,
    EngineView,
    Failure,
    Held,
    MapChange,
    MapState,
    Placement,
    Tier,
)
from mint_contracts.resources import (
    AdapterLimits,
    AdapterStore,
    AdapterWaveSpec,
    AdapterWaveStatus,
    BaseModelRef,
    BaseModelSpec,
    BaseModelStatus,
    BaseSource,
    EngineSpec,
    NamedSource,
    Replicas,
    Residency,
    Serve,
    WaveAdapters,
)
from mint_contracts.source import Source, child
from mint_operator.observing import decode
from mint_operator.planning.plan import Plan
from mint_operator.planning.snapshot import BaseMap, Meta, ObservedBase, ObservedWave, Release, Snapshot
from tests.engine_views import engine_record

NOW = 1_800_000_000.0
KEY = "team/smol"
STORE = Source(uri="pvc://samples/adapters")
RELEASE = Release(image="mint.dev/host:dev", redis_url="redis://redis.mint.svc:6379/0")
NEWER = b'{"metadata": {"name": "one"}, "spec": {"baseModelRef": {"name": "smol"}, "serve": {"tape": "long"}}}'
DEFECT = decode.adapter_wave(NEWER).defect
EMPTY = MapState(version=None, base=None, placements={}, assigned={})


def base(
    low: int = 1,
    high: int = 1,
    slots: int = 8,
    *,
    store: bool = True,
    claims: Sequence[str] = (),
    uri: str = "pvc://models/smol",
    status: BaseModelStatus | None = None,
) -> ObservedBase:
    limits = AdapterLimits(
        device_slots=slots,
        store=AdapterStore(uri=STORE.uri) if store else None,
        volume_claims=list(claims),
    )
    spec = BaseModelSpec(
        source=BaseSource(uri=uri), engine=EngineSpec(replicas=Replicas(min=low, max=high)), adapters=limits
    )
    meta = Meta(namespace="team", name="smol", uid="uid-base", generation=3, created="2026-01-01T00:00:00Z")
    return ObservedBase(
        meta=meta,
        spec=spec,
        status=status or BaseModelStatus(),
        kv_cache_bytes=1 << 20,
        host_bytes=1 << 20,
        disk_bytes=1 << 30,
    )


def wave(
    name: str,
    adapters: Sequence[str] = (),
    *,
    replicas: int = 1,
    residency: Residency = "Device",
    priority: int = 0,
    engines: Sequence[int] = (),
    namespace: str = "team",
    created: str = "2026-01-01T00:00:00Z",
    sources: Mapping[str, str] | None = None,
    revision: str = "",
    base_name: str = "smol",
    status: AdapterWaveStatus | None = None,
    ttl: str = "",
) -> ObservedWave:
    named = [NamedSource(name=name, uri=uri, revision=revision) for name, uri in (sources or {}).items()]
    wanted = WaveAdapters(names=list(adapters), sources=named)
    spec = AdapterWaveSpec(
        base_model_ref=BaseModelRef(name=base_name, namespace="" if namespace == "team" else "team"),
        adapters=wanted,
        serve=Serve(replicas=replicas, residency=residency, engines=list(engines), ttl=ttl),
        priority=priority,
    )
    meta = Meta(namespace=namespace, name=name, uid=f"uid-{name}", generation=1, created=created)
    return ObservedWave(meta=meta, spec=spec, status=status or AdapterWaveStatus())


def unread(of: ObservedWave, ref: str = "smol") -> ObservedWave:
    """Return a wave as `decode` gives an unreadable one: at most the base's name is known of its spec."""
    spec = AdapterWaveSpec(base_model_ref=BaseModelRef(ref, "" if of.meta.namespace == "team" else "team"))
    return msgspec.structs.replace(of, spec=spec, defect=DEFECT)


def source(adapter: str) -> Source:
    return child(STORE, adapter)


def engine(
    ordinal: int,
    held: Mapping[str, Tier] | None = None,
    *,
    ready: bool = True,
    alive: bool = True,
    failure: Failure | None = None,
    failures: Mapping[str, Failure] | None = None,
    loads_per_s: float = 0.0,
    training_bytes: int = 0,
    bringing: Bringing | None = None,
) -> EngineView:
    name = f"smol-{ordinal}"
    record = engine_record(
        name,
        address=f"10.0.0.{ordinal}:8470",
        ready=ready,
        failure=failure,
        loads_per_s=loads_per_s,
        training_bytes=training_bytes,
        bringing=bringing,
    )
    holdings = {adapter: Held(adapter, source(adapter), tier) for adapter, tier in (held or {}).items()}
    for adapter, why in (failures or {}).items():
        tier = (held or {}).get(adapter, Tier.REMOTE)
        holdings[adapter] = Held(adapter, source(adapter), tier, failure=why)
    return EngineView(engine=name, record=record if alive else None, held=holdings)


def snapshot(
    of: ObservedBase | None,
    waves: Sequence[ObservedWave] = (),
    engines: Sequence[EngineView] = (),
    placements: Mapping[str, Placement] | None = None,
    *,
    away_s: Mapping[str, float] | None = None,
    unready_s: Mapping[str, float] | None = None,
    state: MapState | None = None,
    redis_ok: bool = True,
    remembered: Mapping[str, Placement] | None = None,
    now: float = NOW,
) -> Snapshot:
    if state is None:
        state = EMPTY if placements is None else MapState(1, None, dict(placements), {})
    known = BaseMap(
        state=state,
        engines=tuple(engines),
        away_s=away_s or {},
        unready_s=unready_s or {},
        remembered=remembered or {},
    )
    return Snapshot(
        now=now,
        release=RELEASE,
        bases={KEY: of} if of else {},
        waves=tuple(waves),
        redis_ok=redis_ok,
        maps={KEY: known} if redis_ok else {},
    )


def placed(plan: Plan, before: Mapping[str, Placement] | None = None) -> dict[str, Placement]:
    """Return the base's placements once the plan's change is written over `before`."""
    change = plan.changes.get(KEY)
    after = dict(before or {})
    if change is not None:
        after |= {placement.adapter: placement for placement in change.set_placements}
        for name in change.del_placements:
            del after[name]
    return after


def written(state: MapState, change: MapChange) -> MapState:
    """Return the map after a change, computed naively."""
    placements = dict(state.placements) | {each.adapter: each for each in change.set_placements}
    assigned = {name: dict(each) for name, each in state.assigned.items()}
    for name, records in change.set_assigned.items():
        assigned.setdefault(name, {}).update({each.adapter: each for each in records})
    for name in change.del_placements:
        del placements[name]
    for name, gone in change.del_assigned.items():
        for adapter in gone:
            del assigned[name][adapter]
    waves = {**state.waves, **{each.wave: each for each in change.set_waves}}
    for name in change.del_waves:
        del waves[name]
    version = (state.version or 0) + 1 if change.completes else state.version
    return MapState(version, change.base or state.base, placements, assigned, waves)


def homes(placements: Mapping[str, Placement]) -> dict[str, list[str]]:
    return {name: [place.engine for place in placement.places] for name, placement in placements.items()}


def engines_of(placement: Placement) -> set[str]:
    return {place.engine for place in placement.places}
