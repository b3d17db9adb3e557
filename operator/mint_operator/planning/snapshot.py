"""What the operator knows at one moment: the complete input of `plan`, frozen.

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
from mint_operator.training.standing import WaveStanding


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
        """When it was created, in seconds since 1970; 0: unknown."""
        return datetime.fromisoformat(self.created).timestamp() if self.created else 0.0


class ObservedBase(msgspec.Struct, frozen=True):
    """A BaseModel, with its quantities in bytes. `defect` says why its spec cannot be used; empty if it can."""

    meta: Meta
    spec: BaseModelSpec
    status: BaseModelStatus
    kv_cache_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    defect: str = ""
    without_catalog: Failure | None = None  # set while planning: why the catalog that its spec names is not used

    @property
    def workload(self) -> tuple[str, str, str]:
        """Kind, namespace and name of the workload that its engines are made of."""
        single, grouped = WORKLOADS
        return (grouped if self.spec.engine.nodes > 1 else single, self.meta.namespace, self.meta.name)


class Listed(msgspec.Struct, frozen=True, gc=False):
    """One adapter that a wave's selector, manifest or name resolves to."""

    name: str
    source: Source


class ObservedWave(msgspec.Struct, frozen=True, dict=True):
    """An AdapterWave. `defect` says why its spec cannot be used; empty if it can. `recall` provides the substitute.

    `too_high`: it asks for a higher priority than the base allows, and `spec` has what is allowed (see `ranked`).
    `listed` are the adapters that had to be looked up, as last read; `unread` says why they cannot be read now, or
    why some are left out. Both are None if the spec says everything, or nothing was ever read. `from_map`: `listed`
    is what the map has for the wave, which may now ask for more.
    """

    meta: Meta
    spec: AdapterWaveSpec
    status: AdapterWaveStatus
    defect: str = ""
    standing: WaveStanding | None = None  # set while planning, for a wave that trains
    listed: tuple[Listed, ...] | None = None
    unread: Refusal | None = None
    from_map: bool = False
    record: WaveRecord | None = None  # the map's, if it stands in for a spec that cannot be used
    shared_with: Mapping[str, tuple[str, ...]] = {}  # with `record`: adapter -> other waves for which the map has it
    too_high: bool = False

    @cached_property
    def base(self) -> str:
        """The "namespace/name" of the base model that it names."""
        named = self.spec.base_model_ref
        return f"{named.namespace or self.meta.namespace}/{named.name}"

    @cached_property
    def lowered(self) -> dict[int, "ObservedWave"]:
        """This wave by the most priority that it may have, so that plans see the same object as long as it is."""
        return {}

    @cached_property
    def named(self) -> frozenset[str]:
        """The names under which requests ask for the adapters that it serves, as far as they are known."""
        given = self.spec.adapters
        found = [*given.names, *[each.name for each in given.sources], *[each.name for each in self.listed or ()]]
        return frozenset(found)

    @cached_property
    def expires(self) -> float | None:
        """When its ttl ends, in seconds since 1970; None: never, as for every wave that trains."""
        ttl_s = seconds(self.spec.serve.ttl)
        if not ttl_s or self.spec.train is not None or not self.meta.created_s:
            return None
        return self.meta.created_s + ttl_s

    def expired(self, now: float) -> bool:
        """Whether its ttl has ended, so that it no longer wants its adapters."""
        return self.expires is not None and now >= self.expires


class EnginePod(msgspec.Struct, frozen=True):
    """An engine's pod, or why it has none (no `name`). `trouble` is why it does not run, e.g. ImagePullBackOff."""

    name: str
    ip: str = ""
    ready: bool = False
    pending: bool = False  # not all of its containers have been started
    terminating: bool = False
    trouble: Failure | None = None
    settings: str = ""  # digest of the settings that its container was made from
    waits: bool = False  # it has a node, but no container yet
    node: str = ""
    uid: str = ""
    ends_by: float | None = None  # when its time to end is over, in seconds since 1970; None: it is not terminating


class Child(msgspec.Struct, frozen=True):
    """An object that the operator made, or that has the name of one; `applied` is its hash annotation."""

    kind: str
    namespace: str
    name: str
    applied: str = ""
    replicas: int = 0  # of workloads only: spec.replicas
    edited: bool = False  # somebody else has changed it since it was applied

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)


class BaseMap(msgspec.Struct, frozen=True):
    """The placement map of one base.

    `away_s` is how long, in seconds and as far as this operator has watched, each engine that is away has shown no
    sign of life: neither a heartbeat nor that it is telling the map what it holds. `unready_s` is how long each
    engine, alive or not, has not been ready while another was, without the time that slower starts are allowed.
    `remembered` are the placements last seen and `recorded` the waves: they stand in after the map was lost.
    """

    state: MapState
    engines: tuple[EngineView, ...] = ()
    away_s: Mapping[str, float] = {}
    remembered: Mapping[str, Placement] = {}
    sizes: Mapping[str, Size] = {}
    busy: int = 0  # engines that the requests in flight would fill, smoothed over 30 s
    lost_s: float = 0.0  # how long the map has been without a version
    demand: Mapping[str, float] = {}  # adapter -> requests in flight over all engines, smoothed and coarse
    recorded: Mapping[str, WaveRecord] = {}
    unready_s: Mapping[str, float] = {}


class TrainKnown(msgspec.Struct, frozen=True):
    """Training of one base: `written` is what the map says now; `state` adds what it said before it was lost."""

    written: TrainState = TrainState()
    state: TrainState = TrainState()


class Inputs(msgspec.Struct, frozen=True):
    """The inputs that training waves refer to, or why one cannot be read.

    ConfigMaps are by namespace and name, as key -> text, without those that do not exist; manifests by the wave's
    uid.
    """

    config_maps: Mapping[str, Mapping[str, Mapping[str, str] | Failure]] = {}
    manifests: Mapping[str, tuple[Policy, ...] | Failure] = {}


class Release(msgspec.Struct, frozen=True):
    """The settings of engines that come from the installation, not from the BaseModel."""

    image: str
    pull_policy: str = "IfNotPresent"
    runtime_class: str = ""
    pull_secrets: tuple[str, ...] = ()
    redis_url: str = ""
    redis_username: str = ""  # the engines' user, and its password: the operator may use another
    redis_password: str = ""
    redis_ca: str = ""
    ca_bundle: str = ""  # ConfigMap of each engine's namespace with the CAs of stores; empty: public CAs
    ca_bundle_key: str = ""
    redis_digest: str = (
        ""  # changes with the user, the password and the CA, so that engines restart with the new ones
    )
    gateway_namespace: str = ""
    gateway_labels: Mapping[str, str] = {}  # of the pods that may call engines; empty: there is no NetworkPolicy

    @property
    def redis_secret(self) -> dict[str, str]:
        """What engines need to authenticate to Redis, by the Secret's keys; empty if nothing."""
        data = {"username": self.redis_username, "password": self.redis_password, "ca.crt": self.redis_ca}
        return {key: value for key, value in data.items() if value}


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that a plan depends on. `now` is seconds since 1970."""

    now: float
    release: Release
    bases: Mapping[str, ObservedBase] = {}
    waves: tuple[ObservedWave, ...] = ()
    pods: Mapping[str, tuple[EnginePod, ...]] = {}
    unmade: Mapping[str, Failure] = {}  # why pods of a base's engines cannot be created, e.g. an exceeded quota
    children: Mapping[tuple[str, str, str], Child] = {}
    groups: bool = True  # whether the cluster has LeaderWorkerSets; looked up only if a base wants one
    redis_ok: bool = True
    maps: Mapping[str, BaseMap] = {}  # also of bases that no longer exist; empty when Redis is away
    training: Mapping[str, TrainKnown] = {}  # as last read, also while Redis is away
    inputs: Inputs = Inputs()
    apply_failures: Mapping[str, Failure] = {}  # the API server refused an object of this base
