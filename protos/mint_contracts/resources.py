"""The custom resources `BaseModel` and `AdapterWave` (mint.dev/v1alpha1), field by field as in crds/.

A test holds these structs and the CRD schemas equal. Defaults are the API server's; they are repeated here so
that a spec can be built in code.
"""

from typing import Any, Literal

import msgspec

from mint_contracts.durations import Duration
from mint_contracts.source import Source
from mint_contracts.training import Train

GROUP = "mint.dev"
VERSION = "v1alpha1"

Residency = Literal["Device", "Host", "Disk"]


class _Camel(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """camelCase on the wire; unset fields stay off it."""


class _Spec(_Camel, frozen=True, forbid_unknown_fields=True):
    """What users ask for: nobody acts upon the rest where a field of it says what this version does not know."""


class SecretRef(_Spec, frozen=True):
    """A Secret of the same namespace whose keys become the engine's environment (AWS_*, HF_TOKEN, ...)."""

    name: str


class _Place(_Spec, frozen=True):
    """Where something is read from, and by which credentials."""

    uri: str
    revision: str = ""
    secret_ref: SecretRef | None = None

    @property
    def source(self) -> Source:
        """The place alone, without the credentials."""
        return Source(uri=self.uri, revision=self.revision)


class BaseSource(_Place, frozen=True):
    """Where the base's weights are: a safetensors directory or one .gguf file."""


class Replicas(_Spec, frozen=True):
    """Bounds on the number of engines."""

    min: int = 1
    max: int = 1


class Resources(_Spec, frozen=True):
    """Kubernetes ResourceRequirements of an engine's container."""

    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}


class EngineCache(_Spec, frozen=True):
    """A volume of each engine for copies of the base and of adapters, which outlives its pods."""

    size: str | int
    storage_class_name: str = ""  # the cluster's default


class EngineSpec(_Spec, frozen=True):
    """How the engines of a base run."""

    replicas: Replicas = Replicas()
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantised_experts: bool = False
    context_length: int = 2048
    kv_cache_memory: str | int = "1Gi"
    tensor_parallel_size: int = 1
    nodes: int = 1
    cache: EngineCache | None = None
    resources: Resources = Resources()
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    affinity: dict[str, Any] = {}
    topology_spread_constraints: list[dict[str, Any]] = []  # without a labelSelector: about the base's engines
    priority_class_name: str = ""
    runtime_class_name: str = ""  # empty: the installation's
    termination_grace_period_seconds: int = 60
    pod_labels: dict[str, str] = {}
    pod_annotations: dict[str, str] = {}
    service_account_annotations: dict[str, str] = {}


class AdapterStore(_Place, frozen=True):
    """A folder in which every adapter lies under its own name, so that it can be asked for without a wave."""


class AdapterLimits(_Spec, frozen=True):
    """What adapters a base takes, and how many stay warm."""

    max_rank: int = 32
    target_modules: list[str] = []  # empty: every linear module of the decoder layers
    device_slots: int = 16
    host_memory: str | int = "1Gi"
    disk_cache: str | int = "4Gi"
    store: AdapterStore | None = None
    base_names: list[str] = []  # accepted base_model_name_or_path; empty: shapes alone decide
    volume_claims: list[str] = []  # further claims that pvc:// sources of waves may name


class TrainingStore(_Spec, frozen=True):
    """A folder that engines may write: checkpoints and published revisions of what is trained on the base."""

    uri: str
    secret_ref: SecretRef | None = None

    @property
    def source(self) -> Source:
        """The place alone, without the credentials."""
        return Source(uri=self.uri)


class TrainingLimits(_Spec, frozen=True):
    """What training on a base needs."""

    store: TrainingStore


class Manifests(_Spec, frozen=True):
    """A folder that the gateways write: file://, pvc://, s3:// or gs://."""

    uri: str


class Catalog(_Spec, frozen=True):
    """Every adapter of the base that can be named; its manifests are the catalog, and Redis a copy."""

    manifests: Manifests

    @property
    def source(self) -> Source:
        """Where the manifests are."""
        return Source(uri=self.manifests.uri)


class Tenant(_Spec, frozen=True):
    """A namespace that may hold adapters on a base: its weight against others, slots, and highest priority."""

    namespace: str
    weight: int = 1
    device_slots: int = 0  # 0: as many as there are
    max_priority: int | None = None  # a higher one counts as this; None: any may be had


class BaseModelSpec(_Spec, frozen=True):
    """One base model that stays resident in its engines."""

    source: BaseSource
    engine: EngineSpec = EngineSpec()
    adapters: AdapterLimits = AdapterLimits()
    training: TrainingLimits | None = None  # None: nothing is trained on it
    catalog: Catalog | None = None  # None: adapters are known by waves and the store alone
    tenants: list[Tenant] = []  # beside the base's own namespace, which needs no entry


class BaseModelRef(_Spec, frozen=True):
    """A BaseModel of the wave's own namespace, or of another that has it among its tenants."""

    name: str
    namespace: str = ""


class NamedSource(_Spec, frozen=True):
    """One adapter with its own place."""

    name: str
    uri: str
    revision: str = ""


class Selector(_Spec, frozen=True):
    """Adapters of the base's catalog: those whose names begin with `prefix` and that have all of `labels`."""

    prefix: str = ""
    labels: dict[str, str] = {}


class WaveAdapters(_Spec, frozen=True):
    """The adapters of a wave: exactly one of the fields is set."""

    names: list[str] = []  # of the base's adapter store, or of its catalog; NAME@REVISION of the catalog alone
    sources: list[NamedSource] = []
    selector: Selector | None = None
    manifest: str = ""  # URI of a file of entries


class Serve(_Spec, frozen=True):
    """Hold each adapter on `replicas` engines, in `residency` or warmer."""

    replicas: int = 1
    residency: Residency = "Device"
    engines: list[int] = []  # ordinals of the only engines that may hold them; empty: any may
    ttl: Duration = ""  # so long after the wave's creation they are wanted no more; empty: no end


class AdapterWaveSpec(_Spec, frozen=True):
    """A set of adapters wanted together: exactly one of `adapters` and `train` is given."""

    base_model_ref: BaseModelRef
    adapters: WaveAdapters = WaveAdapters()
    train: Train | None = None
    serve: Serve = Serve()  # with `train`: how the published revision of a policy is held once the policy has ended
    priority: int = 0


class Condition(_Camel, frozen=True):
    """A Kubernetes condition (metav1.Condition)."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


class EngineCounts(_Camel, frozen=True):
    """Engines of a base; `selector` serves the scale subresource."""

    desired: int = 0
    ready: int = 0
    selector: str = ""


class SlotCounts(_Camel, frozen=True):
    """Device slots over all ready engines."""

    used: int = 0
    total: int = 0


class TierCounts(_Camel, frozen=True):
    """Adapter copies by the tier that engines report."""

    device: int = 0
    host: int = 0
    disk: int = 0


class LoadingStatus(_Camel, frozen=True):
    """Copies that engines are still to bring up, and how long that, or the base, takes at the rates they tell."""

    copies: int = 0
    eta_seconds: int | None = None  # unset while nothing loads, or while no engine has told its rate
    eta: str = ""  # the same for people, e.g. "4m10s"


class BaseModelStatus(_Camel, frozen=True):
    """What is true of a base now."""

    phase: str = ""
    observed_generation: int = 0
    conditions: list[Condition] = []
    engines: EngineCounts = EngineCounts()
    slots: SlotCounts = SlotCounts()
    adapters: TierCounts = TierCounts()
    loading: LoadingStatus = LoadingStatus()


class WaveCounts(_Camel, frozen=True):
    """Adapter copies of a wave: wanted = adapters x replicas; the rest as engines report them."""

    adapters: int = 0
    wanted: int = 0
    placed: int = 0
    ready: int = 0
    device: int = 0
    host: int = 0
    disk: int = 0
    failed: int = 0


class WaveEngine(_Camel, frozen=True):
    """How much of a wave one engine holds."""

    name: str
    wanted: int = 0
    ready: int = 0


class WaveFailure(_Camel, frozen=True):
    """An adapter that an engine could not take, and why."""

    adapter: str
    engine: str
    reason: str
    message: str


class PolicyCounts(_Camel, frozen=True):
    """Policies of a training wave by stage; `waiting` have no engine yet, or load."""

    total: int = 0
    waiting: int = 0
    running: int = 0
    paused: int = 0
    complete: int = 0
    cancelled: int = 0
    failed: int = 0


class RewardStatus(_Camel, frozen=True):
    """Rewards, each a mean over the policies of a wave; unset before the first step."""

    last: float | None = None  # of the last step's completions
    recent: float | None = None  # over the last 10 steps
    best: float | None = None  # of each policy's best step
    evaluation: float | None = None  # of the last evaluation


class TrainingStatus(_Camel, frozen=True):
    """How the training of a wave stands, in aggregate; `mint wave watch` shows each policy."""

    step: int = 0  # finished steps of the policy that is furthest behind, failed and cancelled ones left aside
    steps: int = 0
    progress: str = ""  # "step/steps", for the printer column
    reward: RewardStatus = RewardStatus()
    tokens: int = 0
    eta_seconds: int | None = None
    eta: str = ""  # the same for people, e.g. "4m10s"
    policies: PolicyCounts = PolicyCounts()


class AdapterWaveStatus(_Camel, frozen=True):
    """What is true of a wave now. `failures` holds the first ten."""

    phase: str = ""
    observed_generation: int = 0
    conditions: list[Condition] = []
    counts: WaveCounts = WaveCounts()
    position: int = 0  # in the queue of waves that wait to be admitted, from 1; 0: not waiting
    summary: str = ""  # "ready/wanted", for the printer column
    engines: list[WaveEngine] = []
    failures: list[WaveFailure] = []
    training: TrainingStatus | None = None
    loading: LoadingStatus = LoadingStatus()
    eta: str = ""  # until it has been trained, or until what it is to hold is there, for the printer column
