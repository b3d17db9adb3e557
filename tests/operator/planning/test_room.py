"""What counts as lack of room for a pod, and what as a fault of its spec, in Kubernetes' own words."""

import pytest

from mint_contracts.records import Failure
from mint_operator.planning.room import lacks_room

VICTIMS = " preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
HELPFUL = " preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
FAILED = "create Pod smol-1 in StatefulSet smol failed error: "
REFUSED = FAILED + 'pods "smol-1" is forbidden: '
TIMED_OUT = "failed to process volumes=[]: timed out waiting for the condition"
MOUNTS = "Unable to attach or mount volumes: unmounted volumes=[models], unattached volumes="

ROOM = [
    ("Unschedulable", "0/1 nodes are available: 1 Insufficient memory." + VICTIMS),
    (
        "Unschedulable",
        "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {a: }.",
    ),
    (
        "Unschedulable",
        "0/3 nodes are available: 2 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector.",
    ),
    ("Unschedulable", "0/3 nodes are available: 3 Too many pods." + VICTIMS),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules." + VICTIMS),
    (
        "Unschedulable",
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules." + VICTIMS,
    ),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints." + VICTIMS),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports."),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) exceed max volume count." + VICTIMS),
    (
        "Unschedulable",
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod "
        "access mode.",
    ),
    ("Unschedulable", "smol-1-1: 0/1 nodes are available: 1 Insufficient memory."),
    ("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
    (
        "FailedCreate",
        REFUSED + "exceeded quota: small, requested: requests.memory=4Gi, used: requests.memory=6Gi, limited: "
        "requests.memory=8Gi",
    ),
    ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-9dbd" Volume is already used by pod(s) smol-0'),
    (
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-9dbd" Volume is already exclusively attached to one node and can\'t be '
        "attached to another",
    ),
    ("FailedMount", f"{MOUNTS}[models], {TIMED_OUT}"),
]
FAULTS = [
    ("Unschedulable", '0/3 nodes are available: persistentvolumeclaim "modles" not found.' + HELPFUL),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector." + HELPFUL),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) didn't match pod affinity rules." + HELPFUL),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: }." + HELPFUL),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) were unschedulable." + HELPFUL),
    ("Unschedulable", "0/3 nodes are available: 3 node(s) had volume node affinity conflict." + HELPFUL),
    (
        "Unschedulable",
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
        + HELPFUL,
    ),
    ("Unschedulable", "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims." + HELPFUL),
    ("FailedCreate", REFUSED + "maximum memory usage per Container is 2Gi, but limit is 4Gi"),
    ("FailedCreate", REFUSED + "failed quota: small: must specify limits.memory for: engine"),
    ("FailedCreate", REFUSED + 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'),
    ("FailedCreate", FAILED + 'admission webhook "validate.kyverno.svc-fail" denied the request: no digest'),
    ("FailedCreate", REFUSED + 'error looking up service account team/a: serviceaccount "a" not found'),
    ("FailedMount", 'MountVolume.SetUp failed for volume "ca" : configmap "company-ca" not found'),
    ("FailedMount", 'MountVolume.SetUp failed for volume "token" : secret "hub" not found'),
    ("FailedMount", f"{MOUNTS}[], {TIMED_OUT}"),
    ("FailedAttachVolume", 'AttachVolume.Attach failed for volume "pv-1" : rpc error: code = NotFound desc = none'),
    ("ImagePullBackOff", 'Back-off pulling image "mint.dev/host:nwe"'),
]


@pytest.mark.parametrize(("reason", "message"), ROOM)
def test_a_pod_whose_room_others_take_lacks_room(reason: str, message: str) -> None:
    assert lacks_room(Failure(reason, message, terminal=False))


@pytest.mark.parametrize(("reason", "message"), FAULTS)
def test_a_pod_whose_own_spec_is_at_fault_does_not(reason: str, message: str) -> None:
    assert not lacks_room(Failure(reason, message, terminal=False))
