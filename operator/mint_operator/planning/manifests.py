"""The objects that a BaseModel becomes, as plain dictionaries for server-side apply. Pure.

`render` returns all objects of one base; each `Manifest` carries the digest of its body as an annotation, so that
only changed objects are sent.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from mint_contracts import settings
from mint_contracts.resources import GROUP, VERSION
from mint_operator.planning.groups import leader_worker_set, worker_pod
from mint_operator.planning.podspec import CACHE_VOLUME, REDIS_SECRET, pod_spec
from mint_operator.planning.snapshot import ObservedBase, Release
from mint_operator.planning.spread import spread

Body = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "mint"
BASE_LABEL = "mint.dev/base-model"
WORKER = "mint-engine-worker"
APPLIED = "mint.dev/applied"
SETTINGS_DIGEST = "mint.dev/settings"
REDIS_DIGEST = "mint.dev/redis"


class Manifest(msgspec.Struct, frozen=True):
    """One object to apply for `bases` ("namespace/name" each), and the digest of its body."""

    kind: str
    namespace: str
    name: str
    body: Body
    bases: tuple[str, ...]
    digest: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)


def render(base: ObservedBase, release: Release, engines: int, partition: int = 0) -> tuple[Manifest, ...]:
    """Return every object of one base that runs `engines` engines.

    A rolling update restarts only pods from ordinal `partition` on.
    """
    guard = (network_policy(base, release),) if release.gateway_labels else ()
    bodies = (
        service_account(base),
        service(base),
        *guard,  # before the engines that it guards
        disruption_budget(base),
        _workload(base, release, engines, partition),
    )
    return tuple(_manifest(body, (base,)) for body in bodies)


def redis_secret(bases: Sequence[ObservedBase], release: Release) -> Manifest:
    """Return the Secret with which one namespace's engines authenticate to Redis, owned by all `bases` there.

    It has one fixed name, so that the operator's role can be limited to it.
    """
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": bases[0].meta.namespace,
            "name": REDIS_SECRET,
            "labels": {"app.kubernetes.io/name": "mint-engine", MANAGED_BY: MANAGER},
            "ownerReferences": [_owner(base, controller=False) for base in bases],
        },
        "type": "Opaque",
        "stringData": release.redis_secret,
    }
    return _manifest(body, bases)


def selector(base_name: str) -> dict[str, str]:
    """Return the labels that select the engines of a base."""
    return {"app.kubernetes.io/name": "mint-engine", BASE_LABEL: base_name}


def members(base: ObservedBase) -> dict[str, str]:
    """Return the labels that select every pod of a base, including workers of engines over several nodes."""
    return {BASE_LABEL: base.meta.name} if base.spec.engine.nodes > 1 else selector(base.meta.name)


def selector_text(base_name: str) -> str:
    """Return `selector` in the scale subresource's format."""
    return ",".join(f"{key}={value}" for key, value in selector(base_name).items())


def service_account_name(base_name: str) -> str:
    """Return the name of the engines' service account, which has no permissions."""
    return f"{base_name}-engine"


def service_account(base: ObservedBase) -> Body:
    """Return the engines' service account, whose token is not mounted."""
    metadata = _metadata(base, service_account_name(base.meta.name))
    if annotations := base.spec.engine.service_account_annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def service(base: ObservedBase) -> Body:
    """Return the headless Service that gives engines stable names; gateways dial the addresses in the map."""
    ports = [
        {
            "name": "grpc",
            "port": settings.ENGINE_PORT,
            "targetPort": "grpc",
            "protocol": "TCP",
            "appProtocol": "grpc",
        },
        {"name": "metrics", "port": settings.METRICS_PORT, "targetPort": "metrics", "protocol": "TCP"},
    ]
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(base.meta.name),
        "ports": ports,
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(base, base.meta.name), "spec": spec}


def network_policy(base: ObservedBase, release: Release) -> Body:
    """Return the policy that lets only the release's gateways call the engines; anybody may read their metrics.

    The pods of engines over several nodes may reach each other on any port: ranks negotiate ports when they connect,
    and exchange data over unauthenticated connections, so nobody else may reach them.
    """
    gateways = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": release.gateway_namespace}},
        "podSelector": {"matchLabels": dict(release.gateway_labels)},
    }
    ingress: list[Body] = [
        {"from": [gateways], "ports": [{"port": settings.ENGINE_PORT, "protocol": "TCP"}]},
        {"ports": [{"port": settings.METRICS_PORT, "protocol": "TCP"}]},
    ]
    if base.spec.engine.nodes > 1:
        ingress.append({"from": [{"podSelector": {"matchLabels": members(base)}}]})
    spec = {"podSelector": {"matchLabels": members(base)}, "policyTypes": ["Ingress"], "ingress": ingress}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(base, base.meta.name),
        "spec": spec,
    }


def disruption_budget(base: ObservedBase) -> Body:
    """Return the budget that lets voluntary disruptions evict one engine at a time.

    An engine over several nodes restarts as a group when one of its pods is evicted; until all of its pods are ready
    again, no ready pod of another group may be evicted.

    Pods that are not ready serve nobody, so they may always be evicted and never hold up a drain.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(base, base.meta.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": members(base)},
        },
    }


def settings_digest(base: ObservedBase, release: Release) -> str:
    """Return the digest of everything that an engine's pods are made from; a pod with another digest must restart."""
    return _digest({"templates": _templates(base, release)})


def _workload(base: ObservedBase, release: Release, engines: int, partition: int) -> Body:
    """Return the engines' workload: stable names, all started at once, rolled when their pods' settings change."""
    name, nodes = base.meta.name, base.spec.engine.nodes
    templates, digest = _templates(base, release), settings_digest(base, release)
    for each in templates:  # last, since a change outside the digest would restart engines unnoticed
        each["metadata"]["annotations"][SETTINGS_DIGEST] = digest
    if nodes > 1:
        leader, worker = templates
        return leader_worker_set(_metadata(base, name), leader, worker, nodes, engines, partition)
    [template] = templates
    rolling = {"rollingUpdate": {"partition": partition}} if partition else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(base, name),
        "spec": {
            "replicas": engines,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"} | rolling,
            "selector": {"matchLabels": selector(name)},
            "template": template,
        }
        | _cache(base),
    }


def _cache(base: ObservedBase) -> Body:
    """Return the claims for engines' local copies; nothing if those are deleted with the pods."""
    cache = base.spec.engine.cache
    if cache is None:
        return {}
    spec: Body = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": str(cache.size)}}}
    if cache.storage_class_name:
        spec["storageClassName"] = cache.storage_class_name
    return {
        "volumeClaimTemplates": [{"metadata": {"name": CACHE_VOLUME}, "spec": spec}],
        # An engine that comes back finds what it had; the claims are deleted with the BaseModel.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
    }


def _templates(base: ObservedBase, release: Release) -> list[Body]:
    """Return the pod templates of an engine, its leader's first; any change in one restarts its pods."""
    name = base.meta.name
    pod = pod_spec(base, release, service_account_name(name), selector(name))
    leader = _template(_labels(name), base, release, pod)
    if base.spec.engine.nodes == 1:
        return [leader]
    labels = _labels(name) | {"app.kubernetes.io/name": WORKER, "app.kubernetes.io/component": "worker"}
    constraints = spread(base.spec.engine, {key: labels[key] for key in selector(name)})
    return [leader, _template(labels, base, release, worker_pod(pod, constraints))]


def _template(labels: dict[str, str], base: ObservedBase, release: Release, pod: Body) -> Body:
    engine, own = base.spec.engine, {REDIS_DIGEST: release.redis_digest} if release.redis_digest else {}
    metadata = {"labels": engine.pod_labels | labels, "annotations": engine.pod_annotations | own}
    return {"metadata": metadata, "spec": pod}


def _labels(base_name: str) -> dict[str, str]:
    return selector(base_name) | {
        "app.kubernetes.io/instance": base_name,
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/part-of": "mint",
        MANAGED_BY: MANAGER,
    }


def _metadata(base: ObservedBase, name: str) -> Body:
    return {
        "namespace": base.meta.namespace,
        "name": name,
        "labels": _labels(base.meta.name),
        "ownerReferences": [_owner(base, controller=True)],
    }


def _owner(base: ObservedBase, *, controller: bool) -> Body:
    owner: Body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "BaseModel", "name": base.meta.name}
    owner |= {"uid": base.meta.uid, "controller": controller}
    return owner


def _manifest(body: Body, bases: Sequence[ObservedBase]) -> Manifest:
    metadata, digest = body["metadata"], _digest(body)
    stamped = body | {"metadata": metadata | {"annotations": metadata.get("annotations", {}) | {APPLIED: digest}}}
    return Manifest(
        kind=body["kind"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        body=stamped,
        bases=tuple(base.meta.key for base in bases),
        digest=digest,
    )


def _digest(body: Body) -> str:
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()[:16]
