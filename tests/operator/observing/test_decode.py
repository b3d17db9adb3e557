"""API objects, even odd ones, are decoded into the records of a snapshot."""

import json
from typing import Any

import pytest

from mint_contracts.records import Failure
from mint_operator.observing import decode

METADATA = {
    "name": "smol",
    "namespace": "team",
    "uid": "u1",
    "generation": 4,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "managedFields": [{"manager": "kubectl"}],
}


def raw(**parts: Any) -> bytes:
    return json.dumps({"metadata": METADATA} | parts).encode()


def test_a_base_has_its_quantities_in_bytes() -> None:
    limits = {"hostMemory": "1Gi", "diskCache": "2G"}
    spec = {"source": {"uri": "pvc://m/s"}, "engine": {"kvCacheMemory": 1048576}, "adapters": limits}
    found = decode.base_model(raw(spec=spec, status={"phase": "Ready"}))
    assert (found.kv_cache_bytes, found.host_bytes, found.disk_bytes) == (1 << 20, 1 << 30, 2 * 10**9)
    assert (found.meta.key, found.meta.generation, found.meta.deleting) == ("team/smol", 4, False)
    assert (found.status.phase, found.defect) == ("Ready", "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": {"uri": "pvc://m/s"}, "adapters": {"hostMemory": "much"}}, "spec.adapters.hostMemory 'much'"),
        ({"source": {"uri": 7}}, "Expected `str`, got `int` - at `$.source.uri`"),
        ({}, "missing required field `source`"),
    ],
)
def test_a_spec_that_cannot_be_read_says_where(spec: dict[str, Any], message: str) -> None:
    assert message in decode.base_model(raw(spec=spec)).defect


@pytest.mark.parametrize("amount", ["1e5000", "1e999999999", "1e4294967306", "1e999999Ki", "16Ei", "inf", "nan"])
def test_more_bytes_than_any_node_has_are_refused_without_being_counted(amount: str) -> None:
    """Such a spec reaches the operator if the installed CRDs are older than the bound."""
    found = decode.base_model(raw(spec={"source": {"uri": "pvc://m/s"}, "adapters": {"hostMemory": amount}}))
    assert f"spec.adapters.hostMemory {amount!r} is " in found.defect


def test_a_wave_whose_ttl_is_no_duration_cannot_be_read() -> None:
    spec = {"baseModelRef": {"name": "smol"}, "adapters": {"names": ["a/b"]}, "serve": {"ttl": "soon"}}
    assert "`$.serve.ttl`" in decode.adapter_wave(raw(spec=spec)).defect


def test_one_wave_that_cannot_be_read_hinders_no_other() -> None:
    found = decode.adapter_wave(raw(spec={"baseModelRef": {"name": "smol"}, "adapters": {"names": "a/b"}}))
    assert "`$.adapters.names`" in found.defect
    assert found.base == "team/smol", "what can be read of it is"


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"adapters": {"query": "x"}}, "`query` - at `$.adapters`"),
        ({"adapters": {"selector": {"query": "x"}}}, "`query` - at `$.adapters.selector`"),
        ({"serve": {"tape": "x"}}, "`tape` - at `$.serve`"),
        ({"distil": {}}, "`distil`"),
    ],
)
def test_a_spec_that_says_more_than_this_version_knows_cannot_be_read(spec: dict[str, Any], where: str) -> None:
    assert where in decode.adapter_wave(raw(spec={"baseModelRef": {"name": "smol"}} | spec)).defect


def test_a_base_that_says_more_than_this_version_knows_cannot_be_read() -> None:
    found = decode.base_model(raw(spec={"source": {"uri": "pvc://m/s"}, "engine": {"tape": "x"}}))
    assert "`tape` - at `$.engine`" in found.defect


@pytest.mark.parametrize("ref", [{"name": 7}, "smol", None])
def test_a_wave_of_which_not_even_the_base_can_be_read_is_told_as_well(ref: Any) -> None:
    found = decode.adapter_wave(raw(spec={"baseModelRef": ref}))
    assert (bool(found.defect), found.spec.base_model_ref.name) == (True, "")


def test_a_status_of_another_version_is_written_anew() -> None:
    spec = {"baseModelRef": {"name": "smol"}, "adapters": {"names": ["a/b"]}}
    assert decode.adapter_wave(raw(spec=spec, status={"phase": 3})).status.phase == ""
    newer = {"phase": "Ready", "counts": {"ready": 2, "taped": 1}, "tape": "x"}
    assert decode.adapter_wave(raw(spec=spec, status=newer)).status.counts.ready == 2, "what can be read is"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]},
            "ImagePullBackOff",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, "CrashLoopBackOff"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        ({"containerStatuses": [{"state": {"running": {}}}]}, None),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}
                ]
            },
            "Unschedulable",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, "Evicted"),
        ({"phase": "Failed", "reason": "OutOfnvidia.com/gpu"}, "OutOfnvidia_com_gpu"),  # valid in conditions
        ({"phase": "Failed", "reason": "!"}, "PodTrouble"),
        ({}, None),
    ],
)
def test_a_pods_trouble_is_in_kubernetes_own_words(status: dict[str, Any], reason: str | None) -> None:
    metadata = METADATA | {"name": "smol-0", "labels": {"mint.dev/base-model": "smol"}}
    key, pod = decode.engine_pod(json.dumps({"metadata": metadata, "status": status}).encode())
    assert key == "team/smol"
    assert (pod.trouble.reason if pod.trouble else None) == reason


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_a_pod_is_pending_until_its_containers_have_been_started(phase: str) -> None:
    _, pod = decode.engine_pod(json.dumps({"metadata": METADATA, "status": {"phase": phase}}).encode())
    assert pod.pending == (phase == "Pending")


def test_a_container_that_ends_again_and_again_says_how_it_ended() -> None:
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container=engine"}
    end = {"exitCode": 137, "reason": "OOMKilled", "startedAt": "2026-01-01T00:00:00Z"}
    container = {"state": {"waiting": waiting}, "lastState": {"terminated": end}}
    _, pod = decode.engine_pod(
        json.dumps({"metadata": METADATA, "status": {"containerStatuses": [container]}}).encode()
    )
    assert pod.trouble is not None
    assert (pod.trouble.reason, pod.trouble.message) == (
        "CrashLoopBackOff",
        "back-off 5m0s restarting failed container=engine; it ended with OOMKilled, exit code 137; raise "
        "spec.engine.resources.limits.memory of the BaseModel, or lower its spec.adapters.hostMemory or "
        "spec.engine.kvCacheMemory",
    )


def test_a_container_that_has_just_ended_is_in_trouble_unless_it_was_told_to_end() -> None:
    container = {"state": {"terminated": {"exitCode": 3, "reason": "Error"}}}
    status = {"phase": "Running", "containerStatuses": [container]}
    _, pod = decode.engine_pod(json.dumps({"metadata": METADATA, "status": status}).encode())
    assert pod.trouble is not None
    assert (pod.trouble.reason, pod.trouble.message) == ("Error", "the container ended with Error, exit code 3")
    metadata = METADATA | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert decode.engine_pod(json.dumps({"metadata": metadata, "status": status}).encode())[1].trouble is None


def test_a_container_that_was_injected_is_named_also_if_it_runs_before_the_engine() -> None:
    started = {"name": "mesh-init", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    engine = {"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}
    assert _trouble_of(initContainerStatuses=[started], containerStatuses=[engine]) is None
    end = {"exitCode": 137, "reason": "OOMKilled"}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    failing = {"name": "vault", "state": waiting, "lastState": {"terminated": end}}
    trouble = _trouble_of(initContainerStatuses=[started, failing], containerStatuses=[engine])
    assert trouble is not None
    assert (trouble.reason, trouble.message) == (
        "CrashLoopBackOff",
        "container vault, which MinT did not put into the pod: the container is waiting; it ended with OOMKilled, "
        "exit code 137",
    )
    sidecar = {"name": "proxy", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
    trouble = _trouble_of(containerStatuses=[{"name": "engine", "state": {"running": {}}}, sidecar])
    assert trouble is not None
    assert trouble.message == "container proxy, which MinT did not put into the pod: no"


def _trouble_of(**status: Any) -> Failure | None:
    raw_pod = {"metadata": METADATA, "status": {"phase": "Pending"} | status}
    return decode.engine_pod(json.dumps(raw_pod).encode())[1].trouble


def test_claims_that_are_not_bound_are_named() -> None:
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "m", "persistentVolumeClaim": {"claimName": "models"}}]
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    raw_pod = {"metadata": METADATA, "spec": {"volumes": volumes}, "status": {"conditions": [waits]}}
    _, pod = decode.engine_pod(json.dumps(raw_pod).encode())
    assert pod.trouble is not None
    claims = "its claims are models: kubectl describe pvc shows what they are waiting for"
    assert pod.trouble.message == f"{message}; {claims}"


def test_a_pods_address_and_readiness() -> None:
    status = {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = METADATA | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    _, pod = decode.engine_pod(json.dumps({"metadata": metadata, "status": status}).encode())
    assert (pod.ip, pod.ready, pod.terminating) == ("10.0.0.7", True, True)
