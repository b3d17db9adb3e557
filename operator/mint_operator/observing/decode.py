"""Decodes API objects from JSON to what a snapshot holds. Only the fields that matter are read."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
import msgspec.inspect
from kubernetes.utils.quantity import parse_quantity

from mint_contracts.records import Failure
from mint_contracts.resources import (
    AdapterWaveSpec,
    AdapterWaveStatus,
    BaseModelRef,
    BaseModelSpec,
    BaseModelStatus,
    BaseSource,
)
from mint_operator.observing.new_fields import Schema, without_new_defaults
from mint_operator.planning.groups import WORKLOADS
from mint_operator.planning.manifests import APPLIED, BASE_LABEL, SETTINGS_DIGEST
from mint_operator.planning.podspec import ENGINE
from mint_operator.planning.snapshot import Child, EnginePod, Meta, ObservedBase, ObservedWave

# Reasons of a waiting container that are no trouble: every container passes through these states.
_STARTING = {"ContainerCreating", "PodInitializing", ""}

OVERDUE_S = 60.0  # after its time to end, in which a kubelet kills a pod's containers and unmounts its volumes

OF_MEMORY = (
    "; raise spec.engine.resources.limits.memory of the BaseModel, or lower its spec.adapters.hostMemory or "
    "spec.engine.kvCacheMemory"
)

MOST_BYTES = 1 << 60  # 1Ei, as in the CRD

_NO_SCHEMA: Schema = {}
_INFO: Mapping[type, msgspec.inspect.Type] = {
    each: msgspec.inspect.type_info(each) for each in (BaseModelSpec, AdapterWaveSpec)
}

T = TypeVar("T")


class Version(NamedTuple):
    """How new a sighting of an object is: `resource` grows with every change, `generation` with changes of its spec.

    Of two sightings, the one with the higher resource version is newer: they compare as numbers (KEP 5504).
    """

    resource: int
    generation: int


class _Camel(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _Metadata(_Camel, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = "0"
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    def meta(self) -> Meta:
        return Meta(
            namespace=self.namespace,
            name=self.name,
            uid=self.uid,
            generation=self.generation,
            created=self.creation_timestamp,
            deleting=self.deletion_timestamp is not None,
        )


class _Custom(_Camel, frozen=True):
    metadata: _Metadata
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _Named(_Camel, frozen=True):
    name: str = ""
    namespace: str = ""


class _Reference(_Camel, frozen=True):
    base_model_ref: _Named = _Named()


class _Waiting(_Camel, frozen=True):
    reason: str = ""
    message: str = ""


class _Terminated(_Camel, frozen=True):
    exit_code: int = 0
    reason: str = ""


class _ContainerState(_Camel, frozen=True):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(_Camel, frozen=True):
    name: str = ENGINE
    state: _ContainerState = _ContainerState()
    last_state: _ContainerState = _ContainerState()

    @property
    def done(self) -> bool:
        """Whether it has ended as it should, if it is one that runs before the others."""
        return self.state.terminated is not None and self.state.terminated.exit_code == 0


class _PodCondition(_Camel, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _PodStatus(_Camel, frozen=True):
    pod_ip: str = msgspec.field(name="podIP", default="")
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[_PodCondition] = []
    init_container_statuses: list[_ContainerStatus] = []  # of what a mesh has injected, say
    container_statuses: list[_ContainerStatus] = []


class _Claim(_Camel, frozen=True):
    claim_name: str = ""


class _Volume(_Camel, frozen=True):
    persistent_volume_claim: _Claim | None = None


class _PodSpec(_Camel, frozen=True):
    volumes: list[_Volume] = []
    node_name: str = ""


class _Pod(_Camel, frozen=True):
    metadata: _Metadata
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _ChildSpec(_Camel, frozen=True):
    replicas: int = 1


class _Child(_Camel, frozen=True):
    metadata: _Metadata
    spec: _ChildSpec = _ChildSpec()


def base_model(raw: bytes | msgspec.Raw, schema: Schema = _NO_SCHEMA) -> ObservedBase:
    """Decode a BaseModel. If this version cannot read its spec, `defect` says why.

    `schema` is that of specs in the cluster's CRDs; empty if it is not known.
    """
    custom = msgspec.json.decode(raw, type=_Custom)
    status = _lenient(custom.status, BaseModelStatus, BaseModelStatus())
    try:
        spec = _spec(custom.spec, BaseModelSpec, schema)
        return ObservedBase(
            meta=custom.metadata.meta(),
            spec=spec,
            status=status,
            kv_cache_bytes=_bytes(spec.engine.kv_cache_memory, "spec.engine.kvCacheMemory"),
            host_bytes=_bytes(spec.adapters.host_memory, "spec.adapters.hostMemory"),
            disk_bytes=_bytes(spec.adapters.disk_cache, "spec.adapters.diskCache"),
        )
    except (msgspec.ValidationError, ValueError) as error:
        nothing = BaseModelSpec(source=BaseSource(uri=""))
        return ObservedBase(meta=custom.metadata.meta(), spec=nothing, status=status, defect=str(error))


def adapter_wave(raw: bytes | msgspec.Raw, schema: Schema = _NO_SCHEMA) -> ObservedWave:
    """Decode an AdapterWave. If this version cannot read its spec, `defect` says why; the named base is kept.

    `schema` is that of specs in the cluster's CRDs; empty if it is not known.
    """
    custom = msgspec.json.decode(raw, type=_Custom)
    status = _lenient(custom.status, AdapterWaveStatus, AdapterWaveStatus())
    try:
        spec = _spec(custom.spec, AdapterWaveSpec, schema)
        return ObservedWave(meta=custom.metadata.meta(), spec=spec, status=status)
    except msgspec.ValidationError as error:
        named = _lenient(custom.spec, _Reference, _Reference()).base_model_ref
        rest = AdapterWaveSpec(base_model_ref=BaseModelRef(named.name, named.namespace))
        return ObservedWave(meta=custom.metadata.meta(), spec=rest, status=status, defect=str(error))


def _spec(raw: msgspec.Raw, declared: type[T], schema: Schema) -> T:
    """Decode a spec, if necessary without fields that have a newer CRD's default. Raises ValidationError."""
    try:
        return msgspec.json.decode(raw, type=declared)
    except msgspec.ValidationError:
        if not schema:
            raise
        rest = without_new_defaults(msgspec.json.decode(raw), schema, _INFO[declared])
        return msgspec.json.decode(msgspec.json.encode(rest), type=declared)


def identity(raw: bytes | msgspec.Raw) -> tuple[str, Version]:
    """Return the uid and version of any object."""
    metadata = msgspec.json.decode(raw, type=_Child).metadata
    return metadata.uid, Version(int(metadata.resource_version or 0), metadata.generation)


def engine_pod(raw: bytes | msgspec.Raw) -> tuple[str, EnginePod]:
    """Decode a pod; returns the base ("namespace/name") that it serves, and the pod."""
    pod = msgspec.json.decode(raw, type=_Pod)
    ready = any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions)
    deletion = pod.metadata.deletion_timestamp
    found = EnginePod(
        name=pod.metadata.name,
        ip=pod.status.pod_ip,
        ready=ready,
        pending=pod.status.phase == "Pending",
        terminating=deletion is not None,
        trouble=_trouble(pod),
        waits=_waits(pod.status),
        settings=pod.metadata.annotations.get(SETTINGS_DIGEST, ""),
        node=pod.spec.node_name,
        uid=pod.metadata.uid,
        ends_by=None if deletion is None else datetime.fromisoformat(deletion).timestamp(),
    )
    return f"{pod.metadata.namespace}/{pod.metadata.labels.get(BASE_LABEL, '')}", found


def overdue(pod: EnginePod, now: float) -> Failure | None:
    """Return the trouble of a pod that should have ended long ago, as on a node that has died; else None."""
    if not pod.node or pod.ends_by is None or now < pod.ends_by + OVERDUE_S:
        return None
    message = (
        f"its pod was to end, but node {pod.node} does not report that it has; Kubernetes starts it elsewhere once "
        "the node is back, or its Node is deleted, or is tainted as out of service"
    )
    return Failure(reason="Terminating", message=message, terminal=False)


def child(kind: str, raw: bytes | msgspec.Raw) -> Child:
    """Decode one of our objects, or a foreign one that has its name."""
    found = msgspec.json.decode(raw, type=_Child)
    return Child(
        kind=kind,
        namespace=found.metadata.namespace,
        name=found.metadata.name,
        applied=found.metadata.annotations.get(APPLIED, ""),
        replicas=found.spec.replicas if kind in WORKLOADS else 0,
    )


def fingerprint(raw: bytes | msgspec.Raw) -> int:
    """Return a digest, valid in this process, of what people can change of an object: no status, no bookkeeping."""
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    metadata = msgspec.json.decode(fields["metadata"], type=dict[str, msgspec.Raw])
    told = [bytes(metadata.get(name, b"")) for name in ("labels", "annotations", "ownerReferences")]
    rest = [name for name in sorted(fields) if name not in {"apiVersion", "kind", "metadata", "status"}]
    return hash((*told, *[(name, bytes(fields[name])) for name in rest]))


def labels(raw: bytes | msgspec.Raw) -> Mapping[str, str]:
    """Return the labels of any object."""
    return msgspec.json.decode(raw, type=_Child).metadata.labels


def _trouble(pod: _Pod) -> Failure | None:
    """Return why a pod does not run, in Kubernetes' words; None while it runs or is only starting."""
    status = pod.status
    stays = pod.metadata.deletion_timestamp is None and status.phase != "Failed"
    started = [each for each in status.init_container_statuses if not each.done]
    for each in (*started, *status.container_statuses):
        waiting, ended = each.state.waiting, each.state.terminated
        if ended is not None and stays:
            return failure(ended.reason or "Error", _whose(each, f"the container {_ended(ended, each.name)}"))
        if waiting is not None and waiting.reason not in _STARTING:
            message = _with_end(waiting.message or "the container is waiting", each)
            return failure(waiting.reason, _whose(each, message))
    for condition in status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            message = _with_claims(condition.message or "the pod is not scheduled yet", pod.spec.volumes)
            return failure(condition.reason or "Unschedulable", message)
    if status.phase == "Failed":
        return failure(status.reason or "PodFailed", status.message or "the pod failed")
    return None


def _waits(status: _PodStatus) -> bool:
    """Whether a pod has a node but no container yet: volumes are being mounted, or images pulled."""
    placed = any(each.type == "PodScheduled" and each.status == "True" for each in status.conditions)
    waiting = [each.state.waiting for each in status.container_statuses]
    starting = all(each is not None and each.reason in _STARTING for each in waiting)
    return placed and status.phase == "Pending" and starting


def _with_claims(message: str, volumes: Sequence[_Volume]) -> str:
    """Add a pod's claims to the message if the scheduler says only that some of them are not bound."""
    claims = [each.persistent_volume_claim.claim_name for each in volumes if each.persistent_volume_claim]
    if "unbound" not in message or not claims:
        return message
    return f"{message}; its claims are {', '.join(claims)}: kubectl describe pvc shows what they are waiting for"


def _whose(container: _ContainerStatus, message: str) -> str:
    """Name the container if it is not the engine's, but one that was injected into the pod."""
    if container.name == ENGINE:
        return message
    return f"container {container.name}, which MinT did not put into the pod: {message}"


def _with_end(message: str, container: _ContainerStatus) -> str:
    """Add how the container last ended, e.g. out of memory, which a message about back-off does not say."""
    end = container.last_state.terminated
    return message if end is None else f"{message}; it {_ended(end, container.name)}"


def _ended(end: _Terminated, container: str) -> str:
    """Say how a container ended and, if known, what to do about it."""
    text = f"ended with {end.reason or 'Error'}, exit code {end.exit_code}"
    return text + OF_MEMORY if end.reason == "OOMKilled" and container == ENGINE else text


def failure(reason: str, message: str) -> Failure:
    """Return a Failure whose reason is valid in a condition; kubelets also give reasons like OutOfnvidia.com/gpu."""
    word = re.sub(r"^[^A-Za-z]+|[^A-Za-z0-9]+$", "", re.sub(r"[^A-Za-z0-9]", "_", reason))
    return Failure(reason=word or "PodTrouble", message=message, terminal=False)


def _lenient(raw: msgspec.Raw, kind: type[T], default: T) -> T:
    """Decode `raw`, or return `default` if another version wrote it differently; a status is then rewritten."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        return default


def _bytes(quantity: str | int, field: str) -> int:
    try:
        parsed: Any = parse_quantity(quantity)  # type: ignore[no-untyped-call]
    except (ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{field} {quantity!r} is not a valid quantity ({error}); use for example 512Mi or 4Gi"
        ) from None
    if not parsed.is_finite() or parsed > MOST_BYTES:  # 1e99999 parses, but its int takes too long
        raise ValueError(f"{field} {quantity!r} is more than any node has; use for example 512Mi or 4Gi")
    return int(parsed)
