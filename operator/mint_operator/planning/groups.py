"""An engine over several nodes: a group of pods, the first of which acts as the engine towards everything else. Pure.

The groups of a base are one LeaderWorkerSet (leaderworkerset.x-k8s.io/v1, kubernetes-sigs/lws), in place of the
StatefulSet of engines that are one pod each. Its leaders are named like a StatefulSet's pods, so that for the
placement map, the Service and rolling updates by ordinal there is no difference; rank 0 is among a leader's ranks. A
worker's name has one more number, so a search for engines by name skips it. Every container is given its leader's
address, its index in the group and the group's size (see `mint_contracts.settings`): with these, the same command
runs the engine on a leader, and this node's ranks for it on a worker.
"""

from typing import Any

Body = dict[str, Any]

API_VERSION = "leaderworkerset.x-k8s.io/v1"
KIND = "LeaderWorkerSet"
WORKLOADS = ("StatefulSet", KIND)  # what engines are made of
# What only a pod that takes requests has. A worker needs no probes: its leader is ready only with all ranks, and the
# group's pods all end when one of them ends or stops answering.
_ENDPOINT = ("ports", "startupProbe", "livenessProbe", "readinessProbe")


def leader_worker_set(metadata: Body, leader: Body, worker: Body, nodes: int, engines: int, partition: int) -> Body:
    """Return a LeaderWorkerSet of `engines` groups of `nodes` pods each, with pod templates `leader` and `worker`.

    A rolling update restarts only groups from ordinal `partition` on, one at a time, each with all of its pods.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "replicas": engines,
            "leaderWorkerTemplate": {
                "size": nodes,
                "leaderTemplate": leader,
                "workerTemplate": worker,
                # One share of a base is useless without the others: they restart together.
                "restartPolicy": "RecreateGroupOnPodRestart",
            },
            "startupPolicy": "LeaderCreated",  # workers load their shares while the leader does
            "networkConfig": {"subdomainPolicy": "Shared"},  # the base's own Service finds the leaders
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"partition": partition, "maxUnavailable": 1, "maxSurge": 0},
            },
        },
    }


def leader_of(pod: str) -> str:
    """Return the name of a worker's leader, by the worker's name."""
    return pod.rpartition("-")[0]


def worker_pod(leader: Body, spread: list[Body]) -> Body:
    """Return a worker's pod: its leader's without ports and probes, and spread as these constraints say."""
    containers = [
        {key: value for key, value in each.items() if key not in _ENDPOINT} for each in leader["containers"]
    ]
    return leader | {"containers": containers, "topologySpreadConstraints": spread}
