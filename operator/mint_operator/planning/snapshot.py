"""What the operator knows at one moment: the whole input of `plan`, frozen.

`observe` builds it; planning only reads it. Everything is keyed by "namespace/name" of the base model.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property

import msgspec

from mint_contracts.durations import seconds
from mint_contracts.records import EngineView, Failure, MapState, Placement, WaveRecord
from mint_contracts.resources import AdapterWaveSpec, AdapterWaveStatus, BaseModelSpec, BaseModelStatus
from mint_contracts.source import Source
from mint_contracts.training import Policy
from mint_contracts.training_records import TrainState
from mint_operator.planning.groups import WORKLOADS
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.sizes import Size
from mint_operator.training.stand import WaveStand


class Meta(msgspec.Struct, frozen=True, dict=True):
    """Identity of a Kubernetes object."""

    namespace: str
    name: str
    uid: str = ""
    generation: int = 0
    created: str = ""  # RFC 3339
    deleting: bool = False

    @cached_property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"

    @cached_property
    def created_s(self) -> float:
        """When it was made, in seconds since 1970; 0: not told."""
        return datetime.fromisoformat(self.created).timestamp() if self.created else 0.0


class ObservedBase(msgspec.Struct, frozen=True):
    """A BaseModel, its quantities in bytes. `defect` says why its spec cannot be used; empty if it can."""

    meta: Meta
    spec: BaseModelSpec
    status: BaseModelStatus = BaseModelStatus()
    kv_cache_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    defect: str = ""
    without_catalog: Failure | None = None  # worked out while planning: why it has not the one that its spec names

    @property
    def workload(self) -> tuple[str, str, str]:
        """Kind, namespace and name of what its engines are made of."""
        single, grouped = WORKLOADS
        return (grouped if self.spec.engine.nodes > 1 else single, self.meta.namespace, self.meta.name)


class Listed(msgspec.Struct, frozen=True, gc=False):
    """One adapter that a wave's selector, manifest or name has been found to mean."""

    name: str
    source: Source


class ObservedWave(msgspec.Struct, frozen=True, dict=True):
    """An AdapterWave. `defect` says why its spec cannot be used; empty if it can. `recall` has what stands in for it.

    `listed` is what had to be looked up of its adapters, as last read, and `unread` why that cannot be read now, or
    why some of them are left out; both are None where all is said in the spec, or nothing was ever read. `as_before`:
    what is listed is what the map has of the wave, which may ask for more now.
    """

    meta: Meta
    spec: AdapterWaveSpec
    status: AdapterWaveStatus = AdapterWaveStatus()
    defect: str = ""
    stand: WaveStand | None = None  # worked out while planning, for a wave that trains
    listed: tuple[Listed, ...] | None = None
    unread: Refusal | None = None
    as_before: bool = False
    record: WaveRecord | None = None  # the map's, where it stands in for a spec that cannot be used
    beside: Mapping[str, tuple[str, ...]] = {}  # then also adapter -> other waves that the map has it for

    @cached_property
    def base(self) -> str:
        """ "namespace/name" of the base model that it names."""
        named = self.spec.base_model_ref
        return f"{named.namespace or self.meta.namespace}/{named.name}"

    @cached_property
    def named(self) -> frozenset[str]:
        """The names by which adapters are asked for that it serves, as far as they are known."""
        given = self.spec.adapters
        found = [*given.names, *[each.name for each in given.sources], *[each.name for each in self.listed or ()]]
        return frozenset(found)

    @cached_property
    def expires(self) -> float | None:
        """When its ttl ends, in seconds since 1970; None: never. A wave that trains has none."""
        ttl_s = seconds(self.spec.serve.ttl)
        if not ttl_s or self.spec.train is not None or not self.meta.created_s:
            return None
        return self.meta.created_s + ttl_s

    def expired(self, now: float) -> bool:
        """Whether it wants its adapters no more."""
        return self.expires is not None and now >= self.expires


class EnginePod(msgspec.Struct, frozen=True):
    """An engine's pod, or why it has none (no `name`). `trouble` is why it does not run, e.g. ImagePullBackOff."""

    name: str
    ip: str = ""
    ready: bool = False
    terminating: bool = False
    trouble: Failure | None = None
    settings: str = ""  # digest of what its container was made from
    waits: bool = False  # it has a node, and no container yet


class Child(msgspec.Struct, frozen=True):
    """An object that the operator made, or that bears the name of one; `applied` is its hash annotation."""

    kind: str
    namespace: str
    name: str
    applied: str = ""
    replicas: int = 0  # of workloads only: spec.replicas

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)


class BaseMap(msgspec.Struct, frozen=True):
    """The placement map of one base.

    `away_s` is how long each engine that shows no life has shown none, in seconds, as far as this operator has
    watched: neither a heartbeat, nor that it is telling the map what it holds. `unready_s` is how long each engine,
    alive or not, has not been ready while another one was, as far as it is not to be waited for. `remembered` are the
    placements last seen, `recorded` the waves: they stand in when the map was lost.
    """

    state: MapState
    engines: tuple[EngineView, ...] = ()
    away_s: Mapping[str, float] = {}
    remembered: Mapping[str, Placement] = {}
    sizes: Mapping[str, Size] = {}
    busy: int = 0  # engines that the requests in flight would fill, smoothed over half a minute
    lost_s: float = 0.0  # how long the map has been without a version
    demand: Mapping[str, float] = {}  # adapter -> requests in flight over all engines, smoothed and coarse
    recorded: Mapping[str, WaveRecord] = {}
    unready_s: Mapping[str, float] = {}


class TrainKnown(msgspec.Struct, frozen=True):
    """Training of one base: what the map says now, and `state`, which adds what it said before it was lost."""

    written: TrainState = TrainState()
    state: TrainState = TrainState()


class Inputs(msgspec.Struct, frozen=True):
    """What training waves name beside themselves.

    ConfigMaps by namespace and name, as key -> text, without those that are not there; manifests by the wave's
    uid; or why one cannot be read.
    """

    config_maps: Mapping[str, Mapping[str, Mapping[str, str] | Failure]] = {}
    manifests: Mapping[str, tuple[Policy, ...] | Failure] = {}


class Release(msgspec.Struct, frozen=True):
    """What the installation, not the BaseModel, says of engines."""

    image: str
    pull_policy: str = "IfNotPresent"
    runtime_class: str = ""
    pull_secrets: tuple[str, ...] = ()
    redis_url: str = ""
    redis_password: str = ""
    redis_ca: str = ""
    redis_digest: str = ""  # changes with the password and the CA, so that engines start anew with them
    gateway_namespace: str = ""
    gateway_labels: Mapping[str, str] = {}  # of the pods that may ask engines; empty: no NetworkPolicy says so


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that a plan depends on. `now` is seconds since 1970."""

    now: float
    release: Release
    bases: Mapping[str, ObservedBase] = {}
    waves: tuple[ObservedWave, ...] = ()
    pods: Mapping[str, tuple[EnginePod, ...]] = {}
    unmade: Mapping[str, Failure] = {}  # why pods of a base's engines cannot be made, as where a quota is exceeded
    children: Mapping[tuple[str, str, str], Child] = {}
    groups: bool = True  # whether the cluster has LeaderWorkerSets; not looked at where no base wants one
    redis_ok: bool = True
    maps: Mapping[str, BaseMap] = {}  # also of bases that no longer exist; empty when Redis is away
    training: Mapping[str, TrainKnown] = {}  # as last read, also while Redis is away
    inputs: Inputs = Inputs()
    apply_failures: Mapping[str, Failure] = {}  # the API server refused an object of this base
