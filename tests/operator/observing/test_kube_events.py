"""Troubles of starting engines that only Events report, over a real API server that makes no pods."""

import json
from typing import Any

import pytest

from mint_operator.kube import Kube, KubeError
from mint_operator.observing.kube_events import newest
from tests.operator.leader_worker_set import serve_groups
from tests.operator.stage import Stage, base_model

QUOTA = 'create Pod smol-0 in StatefulSet smol failed error: pods "smol-0" is forbidden: exceeded quota: small'
MOUNT = 'MountVolume.SetUp failed for volume "models": mount.nfs: access denied by server'


async def test_pods_that_may_not_be_made_are_told_of_until_they_are(stage: Stage) -> None:
    await stage.reconcile(base_model())
    tell(stage, "StatefulSet", "smol", "FailedCreate", QUOTA, at=1)
    await stage.once()
    ready = await stage.condition("BaseModel", "smol")
    assert (ready["status"], ready["reason"]) == ("False", "FailedCreate")
    assert f"smol-0: FailedCreate: {QUOTA}" in ready["message"]
    tell(stage, "StatefulSet", "smol", "SuccessfulCreate", "create Pod smol-0 in StatefulSet smol", at=2)
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


async def test_workers_that_may_not_be_made_are_told_of_although_their_leader_runs(stage: Stage) -> None:
    serve_groups(stage.server)
    await stage.reconcile(base_model(engine={"tensorParallelSize": 2, "nodes": 2}))
    pod(stage, {"phase": "Running", "containerStatuses": [container({"running": {}})]})
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"
    quota = QUOTA.replace("smol-0", "smol-0-1").replace("smol failed", "smol-0 failed")
    tell(stage, "StatefulSet", "smol-0", "FailedCreate", quota, at=1)
    await stage.once()
    ready = await stage.condition("BaseModel", "smol")
    assert (ready["status"], ready["reason"]) == ("False", "FailedCreate")
    assert f"smol-0: FailedCreate: smol-0-1: {quota}" in ready["message"]


async def test_a_pod_that_has_a_node_and_no_volumes_says_why(stage: Stage) -> None:
    await stage.reconcile(base_model())
    pod(stage, {"phase": "Pending"})
    tell(stage, "Pod", "smol-0", "FailedMount", MOUNT, at=1, uid=uid_of(stage))
    await stage.once()
    ready = await stage.condition("BaseModel", "smol")
    assert ready["reason"] == "FailedMount"
    assert MOUNT in ready["message"]
    pod(stage, {"phase": "Running", "containerStatuses": [container({"running": {}})]})
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


async def test_what_happened_to_an_earlier_pod_of_its_name_is_not_told_of_a_pod(stage: Stage) -> None:
    """The probe of a pod that is ended fails, and the next pod of a StatefulSet has the same name."""
    await stage.reconcile(base_model())
    pod(stage, {"phase": "Pending"})
    earlier = uid_of(stage)
    stage.kubectl("delete", "pod", "smol-0", "--force", "--grace-period=0")
    pod(stage, {"phase": "Pending"})
    assert uid_of(stage) != earlier
    tell(stage, "Pod", "smol-0", "FailedMount", MOUNT, at=1, uid=earlier)
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


async def test_an_operator_that_may_not_read_events_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    items = Kube.items

    async def forbidden(kube: Kube, kind: str, *rest: Any) -> Any:
        if kind == "Event":
            raise KubeError("GET events", 403, "not for you")
        return await items(kube, kind, *rest)

    monkeypatch.setattr(Kube, "items", forbidden)
    await stage.reconcile(base_model())
    tell(stage, "StatefulSet", "smol", "FailedCreate", QUOTA, at=1)
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


@pytest.mark.parametrize("times", [("lastTimestamp", "lastTimestamp"), ("eventTime", "lastTimestamp")])
def test_the_newest_counts_by_whichever_time_it_has(times: tuple[str, str]) -> None:
    first = {"type": "Normal", "reason": "Scheduled", times[0]: "2026-01-01T00:00:01.000000Z"}
    second = {"type": "Warning", "reason": "FailedMount", "message": MOUNT, times[1]: "2026-01-01T00:00:02Z"}
    found = newest([json.dumps(each).encode() for each in (second, first)])
    assert found is not None
    assert (found.reason, found.message, found.terminal) == ("FailedMount", MOUNT, False)
    again = {"type": "Normal", "reason": "Pulling", "series": {"lastObservedTime": "2026-01-01T00:00:03Z"}}
    assert newest([json.dumps(each).encode() for each in (again, second)]) is None
    assert newest([]) is None


def uid_of(stage: Stage) -> str:
    return stage.kubectl("get", "pod", "smol-0", "-o", "jsonpath={.metadata.uid}")


def tell(stage: Stage, kind: str, name: str, reason: str, message: str, *, at: int, uid: str = "") -> None:
    """Write an Event as a controller or a kubelet does."""
    stage.apply(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{at}"},
            "involvedObject": {"kind": kind, "name": name, "namespace": stage.namespace, "uid": uid},
            "type": "Warning" if reason.startswith("Failed") else "Normal",
            "reason": reason,
            "message": message,
            "lastTimestamp": f"2100-01-01T00:00:0{at}Z",
        }
    )


def pod(stage: Stage, status: dict[str, Any]) -> None:
    """Write the first engine's pod, scheduled on a node, with the status that its kubelet reports."""
    labels = {"app.kubernetes.io/managed-by": "mint", "mint.dev/base-model": "smol"}
    spec = {"containers": [{"name": "engine", "image": "x"}], "automountServiceAccountToken": False}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "smol-0", "labels": labels}, "spec": spec}
    if "smol-0" not in stage.kubectl("get", "pods", "-o", "name"):
        stage.apply(body)
    scheduled = {"type": "PodScheduled", "status": "True"}
    status = {"containerStatuses": [container({"waiting": {"reason": "ContainerCreating"}})]} | status
    patch = json.dumps({"status": status | {"conditions": [scheduled]}})
    stage.kubectl("patch", "pod", "smol-0", "--subresource=status", "--type=merge", "-p", patch)


def container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "engine", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}
