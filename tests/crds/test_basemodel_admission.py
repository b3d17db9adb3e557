"""What the API server accepts and refuses as a BaseModel, and that each refusal says what to do."""

from typing import Any

import msgspec
import pytest

from mint_contracts.resources import BaseModelSpec, BaseSource
from tests.apiserver import ApiServer, KubectlError
from tests.crds.admission import Admission, merged, resource
from tests.crds.schemas import rules

SMALLEST: dict[str, Any] = {"source": {"uri": "pvc://models/smollm2"}}


def engine(**fields: Any) -> dict[str, Any]:
    return {"engine": fields}


def adapters(**fields: Any) -> dict[str, Any]:
    return {"adapters": fields}


def training(**fields: Any) -> dict[str, Any]:
    return {"training": {"store": fields}}


def catalog(**fields: Any) -> dict[str, Any]:
    return {"catalog": {"manifests": fields}}


def resources(requests: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    return engine(resources={"requests": requests, "limits": limits})


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
ZONES = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}


def node_term(operator: str, *values: str) -> dict[str, Any]:
    """A term about one label of nodes."""
    return {"matchExpressions": [{"key": "disk", "operator": operator} | ({"values": values} if values else {})]}


def pod_term(**selector: Any) -> dict[str, Any]:
    """A term about pods of a zone."""
    return {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": selector}


def requires(operator: str, *values: str) -> dict[str, Any]:
    return engine(affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [node_term(operator, *values)]}}})


def selects(operator: str, *values: str) -> dict[str, Any]:
    return engine(affinity={"podAffinity": {REQUIRED: [pod_term(**node_term(operator, *values))]}})


def spread(**fields: Any) -> dict[str, Any]:
    return engine(topologySpreadConstraints=[ZONES | fields])


ACCEPTED = [
    {},
    {"source": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main"}},
    {"source": {"uri": "s3://models/smollm2", "secretRef": {"name": "aws"}}},
    engine(replicas={"min": 2, "max": 2}),
    engine(replicas={"min": 1, "max": 1000}),
    engine(device="cuda", dtype="float16"),
    engine(quantisedExperts=True),
    engine(terminationGracePeriodSeconds=60),
    engine(terminationGracePeriodSeconds=3600),
    engine(tensorParallelSize=2),
    engine(tensorParallelSize=2) | training(uri="pvc://training"),
    engine(tensorParallelSize=2, nodes=1),
    engine(tensorParallelSize=16, nodes=2),
    engine(device="cuda", tensorParallelSize=16, nodes=2, resources={"limits": {"nvidia.com/gpu": 8}}),
    engine(device="cuda", tensorParallelSize=8, resources={"limits": {"nvidia.com/gpu": "8"}}),
    engine(device="cuda", tensorParallelSize=8, resources={"limits": {"memory": "64Gi"}}),
    engine(device="cuda", tensorParallelSize=8, resources={"requests": {"nvidia.com/gpu": 8}}),
    engine(
        device="cuda",
        tensorParallelSize=2,
        resources={"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}},
    ),
    engine(cache={"size": "800Gi"}),
    engine(cache={"size": "5Gi", "storageClassName": "nvme"}, nodes=1),
    engine(contextLength=16),
    engine(contextLength=1048576),
    engine(kvCacheMemory="1Mi"),
    engine(kvCacheMemory=1048576),
    engine(kvCacheMemory="1.5Gi"),
    resources({"cpu": "100m", "memory": "2Gi"}, {"cpu": 2, "memory": "2Gi", "nvidia.com/gpu": 1}),
    engine(kvCacheMemory="512Mi", resources={"limits": {"memory": "1Gi"}}),
    engine(kvCacheMemory="4Gi", device="cuda", resources={"limits": {"memory": "2Gi"}}),
    engine(kvCacheMemory="4Gi", tensorParallelSize=4, nodes=4, resources={"limits": {"memory": "2Gi"}}),
    engine(nodeSelector={"disk": "nvme"}, tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]),
    engine(tolerations=[{"operator": "Exists"}]),
    engine(affinity={}, topologySpreadConstraints=[]),
    engine(
        affinity={
            "nodeAffinity": {
                REQUIRED: {
                    "nodeSelectorTerms": [node_term("In", "a", "b"), node_term("Gt", "3"), node_term("Exists")]
                },
                PREFERRED: [{"weight": 100, "preference": node_term("NotIn", "c")}],
            },
            "podAffinity": {
                PREFERRED: [{"weight": 1, "podAffinityTerm": pod_term(matchLabels={"app": "store"})}],
            },
            "podAntiAffinity": {
                REQUIRED: [pod_term(matchExpressions=[{"key": "app", "operator": "NotIn", "values": ["quiet"]}])],
            },
        }
    ),
    spread(),
    spread(topologyKey="kubernetes.io/hostname", whenUnsatisfiable="DoNotSchedule", minDomains=3, maxSkew=2),
    spread(labelSelector={"matchLabels": {"app": "x"}}, matchLabelKeys=["controller-revision-hash"]),
    spread(nodeAffinityPolicy="Ignore", nodeTaintsPolicy="Honor"),
    engine(
        priorityClassName="gpu-batch", podLabels={"kueue.x-k8s.io/queue-name": "gpus_8.a-1", "team": "", "tier": "x"}
    ),
    engine(runtimeClassName="nvidia-cdi.example"),
    engine(podAnnotations={"sidecar.istio.io/inject": "false"}),
    engine(serviceAccountAnnotations={"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/engines"}),
    adapters(maxRank=1, deviceSlots=1),
    adapters(maxRank=512, deviceSlots=1024),
    adapters(hostMemory="4Gi", diskCache="100Gi"),
    adapters(hostMemory="1Ei", diskCache="1e18"),
    adapters(targetModules=["q_proj", "v_proj"], baseNames=["HuggingFaceTB/SmolLM2-135M-Instruct"]),
    adapters(volumeClaims=["more-adapters", "more.adapters"]),
    adapters(store={"uri": "gs://adapters/all"}),
    adapters(store={"uri": "hf://acme/adapters", "revision": "v1", "secretRef": {"name": "hub"}}),
    {"tenants": [{"namespace": "acme", "maxPriority": 0}, {"namespace": "other", "maxPriority": -1_000_000}]},
    training(uri="pvc://training/runs"),
    training(uri="s3://bucket/runs", secretRef={"name": "aws"}),
    catalog(uri="s3://bucket/catalog"),
]

BY_RULE: list[tuple[dict[str, Any], str]] = [
    (requires("In"), "In and NotIn need values, Gt and Lt a single one"),
    (requires("Lt", "1", "2"), "In and NotIn need values, Gt and Lt a single one"),
    (requires("Exists", "1"), "In and NotIn need values, Gt and Lt a single one"),
    (requires("DoesNotExist", "1"), "In and NotIn need values, Gt and Lt a single one"),
    (selects("NotIn"), "In and NotIn need values; Exists and DoesNotExist take none"),
    (selects("Exists", "x"), "In and NotIn need values; Exists and DoesNotExist take none"),
    (spread(minDomains=2), "minDomains needs whenUnsatisfiable to be DoNotSchedule"),
    (engine(cache={"size": "8Gi"}, tensorParallelSize=4, nodes=2), "an engine on several nodes cannot have volumes"),
    (engine(cache={"size": "4Gi"}), "adapters.diskCache is part of each engine's cache"),
    (engine(cache={"size": "1Ti"}) | adapters(diskCache="2Ti"), "adapters.diskCache is part of each engine's cache"),
    (engine(replicas={"min": 2}), "min must not be above max; raise"),
    (engine(replicas={"min": 3, "max": 2}), "min must not be above max; raise"),
    ({"source": {"uri": "hf://acme/base"}}, "an hf:// source needs a revision"),
    ({"source": {"uri": "hf://acme/base", "revision": ""}}, "an hf:// source needs a revision"),
    (adapters(store={"uri": "hf://acme/adapters"}), "an hf:// source needs a revision"),
    ({"source": {"uri": "ftp://host/base"}}, "uri must begin with file://"),
    ({"source": {"uri": "/models/base"}}, "uri must begin with file://"),
    ({"source": {"uri": "s3://key:secret@bucket/base"}}, "uri must carry no credentials"),
    ({"source": {"uri": "https://host/base?token=1"}}, "uri must carry no credentials"),
    ({"source": {"uri": "https://host/base#part"}}, "uri must carry no credentials"),
    ({"source": {"uri": "pvc://models/../secrets"}}, "uri must be a plain path"),
    ({"source": {"uri": "pvc://models/."}}, "uri must be a plain path"),
    ({"source": {"uri": "pvc://models/%2e%2e/secrets"}}, "uri must be a plain path"),
    ({"source": {"uri": "pvc://models\\secrets"}}, "uri must be a plain path"),
    ({"source": {"uri": "pvc://models/two words"}}, "uri must be a plain path"),
    ({"source": {"uri": "file://models/base"}}, "a file source must be absolute"),
    ({"source": {"uri": "file:///"}}, "a file source must be absolute"),
    ({"source": {"uri": "s3:///base"}}, "uri must name a bucket"),
    ({"source": {"uri": "https://"}}, "uri must name a bucket"),
    ({"source": {"uri": "pvc://Models/base"}}, "a pvc source must name a PersistentVolumeClaim"),
    (adapters(store={"uri": "pvc:///adapters"}), "a pvc source must name a PersistentVolumeClaim"),
    (training(uri="https://host/runs"), "a training store must be one that engines can write"),
    (training(uri="pvc://training/../x"), "uri must be a plain path"),
    (catalog(uri="hf://org/model"), "a catalog's manifests must be where gateways can write"),
    (catalog(uri="s3://key@bucket/x"), "uri must carry no credentials"),
    (adapters(hostMemory="4"), "must be at least 1Mi"),
    (adapters(diskCache="-1Gi"), "must be at least 1Mi"),
    (engine(kvCacheMemory=0), "must be at least 1Mi"),
    (engine(kvCacheMemory="1000m"), "must be at least 1Mi"),
    (adapters(hostMemory="1025Pi"), "must be at most 1Ei"),
    (adapters(hostMemory="1e5000"), "must be at most 1Ei"),
    (adapters(diskCache="16Ei"), "must be at most 1Ei"),
    (engine(kvCacheMemory="1E5000"), "must be at most 1Ei"),
    (engine(cache={"size": "1e30"}), "must be at most 1Ei"),
    (engine(kvCacheMemory="4 gigabytes"), "must be a quantity of bytes"),
    (engine(kvCacheMemory="4GB"), "must be a quantity of bytes"),
    (resources({"cpu": "two"}, {}), "must be a quantity that is not negative"),
    (resources({}, {"memory": "-1"}), "must be a quantity that is not negative"),
    (resources({"memory": "4Gi"}, {"memory": "2Gi"}), "a request must not be above its limit"),
    (resources({"cpu": 3}, {"cpu": "2500m"}), "a request must not be above its limit"),
    (engine(tolerations=[{"operator": "Equal", "value": "x"}]), "a toleration needs a key"),
    (engine(podLabels={"app.kubernetes.io/name": "x"}), "labels of app.kubernetes.io/ and mint.dev/ are set by"),
    (engine(podLabels={"mint.dev/base-model": "x"}), "labels of app.kubernetes.io/ and mint.dev/ are set by"),
    (engine(podAnnotations={"mint.dev/settings": "x"}), "annotations of mint.dev/ are set by the operator"),
    (engine(serviceAccountAnnotations={"mint.dev/applied": "x"}), "annotations of mint.dev/ are set by the operator"),
    (resources({}, {"memory": "1Gi"}), "an engine on a CPU allocates its whole cache in the container's memory"),
    (
        engine(kvCacheMemory=2**31, resources={"limits": {"memory": "2Gi"}}),
        "an engine on a CPU allocates its whole cache in the container's memory",
    ),
    (
        engine(device="cuda", tensorParallelSize=8, resources={"limits": {"nvidia.com/gpu": 4}}),
        "each rank of an engine needs its own GPU",
    ),
    (
        engine(device="cuda", tensorParallelSize=2, resources={"requests": {"nvidia.com/gpu": 1}}),
        "raise resources.requests of nvidia.com/gpu",
    ),
    (engine(tensorParallelSize=3, nodes=2), "each node of an engine has the same number of ranks"),
]

BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"source": None}, "spec.source: Required value"),
    ({"source": {"uri": None}}, "spec.source.uri: Required value"),
    ({"source": {"uri": "pvc://models/" + "x" * 1024}}, "spec.source.uri: Too long"),
    ({"source": {"url": "pvc://models"}}, 'unknown field "spec.source.url"'),
    ({"source": {"secretRef": {"name": "Not A Name"}}}, "spec.source.secretRef.name"),
    (engine(replicas={"min": 0}), "spec.engine.replicas.min"),
    (engine(replicas={"max": 1001}), "spec.engine.replicas.max"),
    (engine(priorityClassName="High Priority"), "spec.engine.priorityClassName"),
    (engine(runtimeClassName="NVIDIA"), "spec.engine.runtimeClassName"),
    (engine(affinity={"nodeSelectorTerms": []}), 'unknown field "spec.engine.affinity.nodeSelectorTerms"'),
    (
        engine(affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}),
        "nodeSelectorTerms in body should have",
    ),
    (requires("Like", "a"), 'supported values: "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"'),
    (engine(affinity={"podAntiAffinity": {REQUIRED: [{"labelSelector": {}}]}}), "topologyKey: Required value"),
    (engine(affinity={"podAffinity": {PREFERRED: [{"weight": 101, "podAffinityTerm": pod_term()}]}}), "weight"),
    (spread(maxSkew=0), "maxSkew"),
    (spread(topologyKey=""), "topologyKey"),
    (spread(whenUnsatisfiable="Maybe"), 'supported values: "DoNotSchedule", "ScheduleAnyway"'),
    (engine(topologySpreadConstraints=[ZONES, ZONES]), "topologySpreadConstraints[1]: Duplicate value"),
    (engine(podLabels={"team": "x" * 64}), "spec.engine.podLabels"),
    (engine(podLabels={"team": "machine learning"}), "spec.engine.podLabels"),
    (engine(podLabels={"team": "-ml"}), "spec.engine.podLabels"),
    (engine(device="tpu"), 'supported values: "cpu", "cuda"'),
    (engine(quantisedExperts="yes"), "spec.engine.quantisedExperts"),
    (engine(terminationGracePeriodSeconds=59), "spec.engine.terminationGracePeriodSeconds"),
    (engine(terminationGracePeriodSeconds=3601), "spec.engine.terminationGracePeriodSeconds"),
    (engine(dtype="int8"), 'supported values: "bfloat16", "float16", "float32"'),
    (engine(tensorParallelSize=0), "spec.engine.tensorParallelSize"),
    (engine(tensorParallelSize=65), "spec.engine.tensorParallelSize"),
    (engine(nodes=0), "spec.engine.nodes"),
    (engine(nodes=65), "spec.engine.nodes"),
    (engine(contextLength=15), "spec.engine.contextLength"),
    (engine(contextLength=1048577), "spec.engine.contextLength"),
    ({"training": {}}, "spec.training.store: Required value"),
    (adapters(maxRank=0), "spec.adapters.maxRank"),
    (adapters(maxRank=513), "spec.adapters.maxRank"),
    (adapters(deviceSlots=0), "spec.adapters.deviceSlots"),
    (adapters(deviceSlots=1025), "spec.adapters.deviceSlots"),
    (adapters(targetModules=["q_proj", "q_proj"]), "spec.adapters.targetModules[1]: Duplicate value"),
    (adapters(volumeClaims=["Not_A_Claim"]), "spec.adapters.volumeClaims[0]"),
    ({"tenants": [{"namespace": "acme", "maxPriority": 1_000_001}]}, "spec.tenants[0].maxPriority"),
    ({"tenants": [{"namespace": "acme", "maxPriority": "high"}]}, "spec.tenants[0].maxPriority"),
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=repr)
def test_accepted(admission: Admission, changes: dict[str, Any]) -> None:
    assert admission.refusal(resource("BaseModel", merged(SMALLEST, changes))) == ""


@pytest.mark.parametrize(("changes", "why"), BY_RULE + BY_SCHEMA, ids=repr)
def test_refused(admission: Admission, changes: dict[str, Any], why: str) -> None:
    assert why in admission.refusal(resource("BaseModel", merged(SMALLEST, changes)))


@pytest.mark.parametrize(
    "uri",
    ["models/base", "ftp://host/base", "HF://a/b", "pvc:/models/base", "file:/base", "s3:///base", "pvc:///base"],
)
def test_a_wrong_uri_is_refused_for_one_reason(admission: Admission, uri: str) -> None:
    refusal = admission.refusal(resource("BaseModel", {"source": {"uri": uri, "revision": "v1"}}))
    assert refusal.count("spec.source.uri") == 1, refusal


@pytest.mark.parametrize("name", ["smollm2", "a", "qwen3-30b-a3b", "x" * 48])
def test_names_that_fit_a_service_and_its_pods(admission: Admission, name: str) -> None:
    assert admission.refusal(resource("BaseModel", SMALLEST, name)) == ""


NAMES = [
    ("3b-instruct", "metadata.name must begin with a letter"),
    ("qwen3.5", "metadata.name must begin with a letter"),
    ("x" * 49, "metadata.name must have at most 48 characters"),
]


@pytest.mark.parametrize(("name", "why"), NAMES)
def test_names_that_do_not_fit_are_refused(admission: Admission, name: str, why: str) -> None:
    assert why in admission.refusal(resource("BaseModel", SMALLEST, name))


def test_every_rule_is_shown_above() -> None:
    shown = [why for _, why in BY_RULE + NAMES] + [NODES_STAY, CACHE_STAYS, CACHE_NEITHER_COMES_NOR_GOES, STORE_STAYS]
    assert [message for message in rules("BaseModel") if not any(message.startswith(why) for why in shown)] == []


def test_defaults_are_those_of_the_struct(admission: Admission) -> None:
    stored = admission.created(resource("BaseModel", SMALLEST))["spec"]
    expected = BaseModelSpec(source=BaseSource(uri="pvc://models/smollm2"))
    assert msgspec.convert(stored, BaseModelSpec) == expected


def test_scaling_moves_the_lower_bound_up_to_the_upper_one(api_server: ApiServer) -> None:
    namespace = api_server.namespace("scale")
    body = resource("BaseModel", merged(SMALLEST, engine(replicas={"max": 2})))
    api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=msgspec.json.encode(body).decode())
    api_server.kubectl("scale", "-n", namespace, "bm/sample", "--replicas=2")
    path = "jsonpath={.spec.engine.replicas.min}"
    assert api_server.kubectl("get", "-n", namespace, "bm/sample", "-o", path) == "2"
    with pytest.raises(KubectlError, match="min must not be above max"):
        api_server.kubectl("scale", "-n", namespace, "bm/sample", "--replicas=3")


NODES_STAY = "nodes is immutable"


def test_nodes_cannot_change(api_server: ApiServer) -> None:
    """Also of a base that does not set them: engines over several nodes are objects of another kind."""
    namespace = api_server.namespace("nodes")

    def apply(**fields: Any) -> None:
        body = resource("BaseModel", merged(SMALLEST, engine(tensorParallelSize=4, **fields)))
        api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=msgspec.json.encode(body).decode())

    apply()
    apply(nodes=1)
    with pytest.raises(KubectlError, match=NODES_STAY):
        apply(nodes=2)


CACHE_STAYS = "cache is immutable"
CACHE_NEITHER_COMES_NOR_GOES = "cache cannot be added or removed"


def test_a_cache_cannot_change(api_server: ApiServer) -> None:
    """A StatefulSet's volumes cannot change either."""
    namespace = api_server.namespace("cache")

    def apply(name: str, **fields: Any) -> None:
        body = resource("BaseModel", merged(SMALLEST, engine(**fields)))
        body["metadata"]["name"] = name
        api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=msgspec.json.encode(body).decode())

    apply("with", cache={"size": "8Gi"})
    apply("with", cache={"size": "8Gi"}, contextLength=64)
    with pytest.raises(KubectlError, match=CACHE_STAYS):
        apply("with", cache={"size": "9Gi"})
    apply("without")
    for name, fields in (("with", {}), ("without", {"cache": {"size": "8Gi"}})):
        with pytest.raises(KubectlError, match=CACHE_NEITHER_COMES_NOR_GOES):
            apply(name, **fields)


STORE_STAYS = "training.store cannot change, since policies resume from it"


def test_a_training_store_cannot_move(api_server: ApiServer) -> None:
    """In another store policies would silently start from scratch."""
    namespace = api_server.namespace("training-store")

    def apply(**store: Any) -> None:
        body = resource("BaseModel", merged(SMALLEST, training(**store) if store else {}))
        api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=msgspec.json.encode(body).decode())

    apply()
    apply(uri="s3://bucket/runs")
    apply(uri="s3://bucket/runs", secretRef={"name": "aws"})
    with pytest.raises(KubectlError, match=STORE_STAYS):
        apply(uri="s3://bucket/others")
    apply()
    apply(uri="s3://bucket/others")


def test_columns_tell_the_state_at_a_glance(api_server: ApiServer) -> None:
    namespace = api_server.namespace("base-columns")
    text = msgspec.json.encode(resource("BaseModel", SMALLEST)).decode()
    api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
    ready = {"type": "Ready", "status": "True", "reason": "EnginesReady", "message": "1 of 2 engines answers"}
    status = {
        "phase": "Ready",
        "observedGeneration": 1,
        "engines": {"desired": 2, "ready": 1},
        "slots": {"used": 3, "total": 8},
        "conditions": [ready | {"lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }
    patch = msgspec.json.encode({"status": status}).decode()
    api_server.kubectl("patch", "-n", namespace, "bm/sample", "--subresource=status", "--type=merge", "-p", patch)
    header, row = api_server.kubectl("get", "-n", namespace, "bm").splitlines()
    assert header.split() == ["NAME", "PHASE", "READY", "ENGINES", "USED", "SLOTS", "ETA", "AGE"]
    assert row.split()[:-1] == ["sample", "Ready", "1", "2", "3", "8"]
    assert "1 of 2 engines answers" in api_server.kubectl("get", "-n", namespace, "bm", "-o", "wide")
    api_server.kubectl("wait", "-n", namespace, "bm/sample", "--for=condition=Ready", "--timeout=30s")
