"""An engine's pod: settings, volumes, probes and security, as a plain dictionary. Pure."""

from typing import Any

import msgspec

from mint_contracts import settings
from mint_contracts.claims import DEFAULT_PVC_ROOT
from mint_contracts.resources import BaseModelSpec
from mint_contracts.source import locate
from mint_operator.planning.snapshot import ObservedBase, Release
from mint_operator.planning.spread import spread

Body = dict[str, Any]

ENGINE = "engine"  # the container
CACHE_FOLDER = "/mint/cache"
CACHE_VOLUME = "cache"
TEMPORARY_FOLDER = "/mint/tmp"  # not /tmp: a mount there would hide what a development cluster mounts below it
REDIS_SECRET = "mint-engine-redis"  # noqa: S105 - an object's name
CA_FOLDER = "/mint/redis"
BUNDLE_FOLDER = "/mint/ca"
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")  # where storage libraries look for CAs
USER = 65532
START_S = 15 * 60  # images of many GB, imports, slow disks
START_PROBE_S = 2
CACHE_SLACK_BYTES = 1 << 30  # for downloads in progress, and what libraries write besides the adapters
SHARED_FOLDER = "/dev/shm"  # noqa: S108 - where NCCL looks
SHARED_BYTES = 1 << 30  # NCCL takes about 10 MB per rank and peer; unused memory costs nothing
GPU = "nvidia.com/gpu"  # a whole one
GPU_PARTS = ("nvidia.com/gpu.", "nvidia.com/mig-")  # how names of shared GPUs and of slices begin


def pod_spec(base: ObservedBase, release: Release, account: str, labels: dict[str, str]) -> Body:
    """Return an engine's pod, spread by these labels."""
    spec, volumes = base.spec.engine, _volumes(base, release)
    pod: Body = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": spread(spec, labels),
        "containers": [_container(base, release, [{"name": name, **mount} for name, _, mount in volumes])],
        "volumes": [{"name": name, **source} for name, source, _ in volumes if source],
    }
    if runtime_class := spec.runtime_class_name or release.runtime_class:
        pod["runtimeClassName"] = runtime_class
    if release.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in release.pull_secrets]
    if spec.node_selector:
        pod["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        pod["tolerations"] = list(spec.tolerations)
    if spec.affinity:
        pod["affinity"] = dict(spec.affinity)
    if spec.priority_class_name:
        pod["priorityClassName"] = spec.priority_class_name
    return pod


def engine_settings(base: ObservedBase) -> settings.EngineSettings:
    """Return the settings of this base's engines, which restart when any of them changes."""
    spec = base.spec
    return settings.EngineSettings(
        base_model=base.meta.key,
        source=spec.source.source,
        device=spec.engine.device,
        dtype=spec.engine.dtype,
        quantised_experts=spec.engine.quantised_experts,
        context_length=spec.engine.context_length,
        kv_cache_bytes=base.kv_cache_bytes,
        max_rank=spec.adapters.max_rank,
        device_slots=spec.adapters.device_slots,
        host_bytes=base.host_bytes,
        disk_bytes=base.disk_bytes,
        target_modules=tuple(spec.adapters.target_modules),
        base_names=tuple(spec.adapters.base_names),
        store=spec.adapters.store.source if spec.adapters.store else None,
        tensor_parallel_size=spec.engine.tensor_parallel_size,
        nodes=spec.engine.nodes,
        training_store=spec.training.store.source if spec.training else None,
        drain_s=spec.engine.termination_grace_period_seconds - settings.ENGINE_RESERVE_S,
    )


def _container(base: ObservedBase, release: Release, mounts: list[Body]) -> Body:
    container: Body = {
        "name": ENGINE,
        "image": release.image,
        "imagePullPolicy": release.pull_policy,
        "command": ["mint-engine"],
        "env": _environment(base, release),
        "ports": _ports(base),
        "resources": _resources(base.spec),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **_probes(),
    }
    secrets = _secrets(base.spec)
    if secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in secrets]
    return container


def _ports(base: ObservedBase) -> list[Body]:
    ports = {"grpc": settings.ENGINE_PORT, "metrics": settings.METRICS_PORT}
    if base.spec.engine.nodes > 1:
        ports["ranks"] = settings.RANKS_PORT
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]


def _environment(base: ObservedBase, release: Release) -> list[Body]:
    encoded = msgspec.json.encode(engine_settings(base), order="sorted").decode()
    env: list[Body] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
        {"name": settings.ENGINE_NAME, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": settings.ENGINE_ADDRESS, "value": f"$(POD_IP):{settings.ENGINE_PORT}"},
        {"name": settings.ENGINE_SETTINGS, "value": _literal(encoded)},
        {"name": settings.PVC_ROOT, "value": DEFAULT_PVC_ROOT},
        {"name": settings.CACHE_FOLDER, "value": CACHE_FOLDER},
        {"name": settings.REDIS_URL, "value": _literal(release.redis_url)},
        {"name": "TMPDIR", "value": TEMPORARY_FOLDER},
    ]
    for name, key in ((settings.REDIS_USERNAME, "username"), (settings.REDIS_PASSWORD, "password")):
        if key in release.redis_secret:
            env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": REDIS_SECRET, "key": key}}})
    if release.redis_ca:
        env.append({"name": settings.REDIS_CA_FILE, "value": f"{CA_FOLDER}/ca.crt"})
    if release.ca_bundle:
        env += [{"name": name, "value": f"{BUNDLE_FOLDER}/ca.crt"} for name in BUNDLE_VARIABLES]
    return env


def _literal(value: str) -> str:
    """Escape `value` for the kubelet, which expands $(NAME) and replaces $$ by $."""
    return value.replace("$", "$$")


def _resources(spec: BaseModelSpec) -> Body:
    requests, limits = dict(spec.engine.resources.requests), dict(spec.engine.resources.limits)
    for name in (
        name for name in requests if "/" in name
    ):  # device plugins' resources need equal requests and limits
        requests[name] = limits.setdefault(name, requests[name])
    if spec.engine.device == "cuda":
        if not any(name == GPU or name.startswith(GPU_PARTS) for name in limits):
            limits[GPU] = _ranks(spec)  # each rank computes on one
        if GPU in limits:
            requests.setdefault(GPU, limits[GPU])
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _ranks(spec: BaseModelSpec) -> int:
    """Return the number of ranks in one pod."""
    return spec.engine.tensor_parallel_size // spec.engine.nodes


def _shares_memory(spec: BaseModelSpec) -> bool:
    """Whether a pod's ranks communicate by NCCL, for which the runtimes' default of 64 MiB is too little."""
    return spec.engine.device == "cuda" and _ranks(spec) > 1


def _secrets(spec: BaseModelSpec) -> list[str]:
    """Return the Secrets whose keys become environment, each once: of source, store and training store."""
    refs = [spec.source.secret_ref, spec.adapters.store.secret_ref if spec.adapters.store else None]
    refs.append(spec.training.store.secret_ref if spec.training else None)
    return list(dict.fromkeys(ref.name for ref in refs if ref is not None))


def _probes() -> Body:
    """Return the probes. Ready: answers requests. Alive: is not stuck, even while the base cannot be read."""
    alive = {"grpc": {"port": settings.ENGINE_PORT, "service": settings.LIVENESS_SERVICE}, "timeoutSeconds": 5}
    ready = {"grpc": {"port": settings.ENGINE_PORT}, "timeoutSeconds": 3}
    return {
        "startupProbe": {**alive, "periodSeconds": START_PROBE_S, "failureThreshold": START_S // START_PROBE_S},
        "livenessProbe": {**alive, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**ready, "periodSeconds": 2},
    }


def claims(base: ObservedBase) -> frozenset[str]:
    """Return the PersistentVolumeClaims that a base's engines mount. Raises SourceForbidden for an invalid source."""
    spec = base.spec
    sources = [spec.source.source] + ([spec.adapters.store.source] if spec.adapters.store else [])
    sources += [spec.training.store.source] if spec.training else []
    places = [locate(source) for source in sources]
    return frozenset(spec.adapters.volume_claims) | {place.host for place in places if place.scheme == "pvc"}


def _read_only(base: ObservedBase, claim: str) -> bool:
    """Whether a claim is mounted read-only: all but the training store's."""
    store = base.spec.training.store if base.spec.training else None
    place = locate(store.source) if store else None
    return place is None or (place.scheme, place.host) != ("pvc", claim)


def _volumes(base: ObservedBase, release: Release) -> list[tuple[str, Body, Body]]:
    """Return each volume's name, source and mount. The cache has no source here if a claim's template makes it."""
    cache: Body = {}
    if base.spec.engine.cache is None:
        limit = {"sizeLimit": str(base.disk_bytes + CACHE_SLACK_BYTES)} if _reads_in_place(base) else {}
        cache = {"emptyDir": limit}
    volumes: list[tuple[str, Body, Body]] = [
        ("tmp", {"emptyDir": {}}, {"mountPath": TEMPORARY_FOLDER}),
        (CACHE_VOLUME, cache, {"mountPath": CACHE_FOLDER}),
    ]
    for index, claim in enumerate(sorted(claims(base))):
        read_only = {"readOnly": _read_only(base, claim)}
        source: Body = {"persistentVolumeClaim": {"claimName": claim, **read_only}}
        volumes.append((f"claim-{index}", source, {"mountPath": f"{DEFAULT_PVC_ROOT}/{claim}", **read_only}))
    if release.redis_ca:
        source = {"secret": {"secretName": REDIS_SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
        volumes.append(("redis-ca", source, {"mountPath": CA_FOLDER, "readOnly": True}))
    if release.ca_bundle:
        items = [{"key": release.ca_bundle_key, "path": "ca.crt"}]
        source = {"configMap": {"name": release.ca_bundle, "items": items}}
        volumes.append(("ca-bundle", source, {"mountPath": BUNDLE_FOLDER, "readOnly": True}))
    if _shares_memory(base.spec):
        source = {"emptyDir": {"medium": "Memory", "sizeLimit": str(SHARED_BYTES)}}
        volumes.append(("shared", source, {"mountPath": SHARED_FOLDER}))
    return volumes


def _reads_in_place(base: ObservedBase) -> bool:
    """Whether the base's own files, whose size is not known here, stay out of the cache folder."""
    return locate(base.spec.source.source).scheme in {"pvc", "file"}
