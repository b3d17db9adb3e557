"""An engine over several nodes: a group of pods, of which the first is the engine to everybody. Pure.

The groups of a base are one LeaderWorkerSet (leaderworkerset.x-k8s.io/v1, kubernetes-sigs/lws), in place of the
StatefulSet of engines that are one pod each. Its leaders have the names that a StatefulSet's pods have, so that the
placement map, the Service and rolling updates by ordinal know no difference; rank 0 is among a leader's ranks. A
worker's name has one number more, and whoever looks for engines by name passes over it. Every container is told where
its leader is, its place in the group and the group's size (see `mint_contracts.settings`): by that the same command
is the engine on a leader, and starts this node's ranks for it on a worker.
"""

from typing import Any

Body = dict[str, Any]

API_VERSION = "leaderworkerset.x-k8s.io/v1"
KIND = "LeaderWorkerSet"
WORKLOADS = ("StatefulSet", KIND)  # what engines are made of
# What only the pod has that is asked for anything. A worker has no probes: its leader is ready only with all ranks,
# and none of the group's pods outlives one of them, or one that does not answer.
_ENDPOINT = ("ports", "startupProbe", "livenessProbe", "readinessProbe")


def leader_worker_set(metadata: Body, leader: Body, worker: Body, nodes: int, engines: int, partition: int) -> Body:
    """`engines` groups of `nodes` pods each, by the pod templates `leader` and `worker`.

    Of a rolling update only groups from ordinal `partition` on start anew, one at a time and each as a whole.
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
                # A share of a base without the others is worth nothing: they start anew together.
                "restartPolicy": "RecreateGroupOnPodRestart",
            },
            "startupPolicy": "LeaderCreated",  # workers load their shares while the leader does
            "networkConfig": {"subdomainPolicy": "Shared"},  # leaders are found by the base's own Service
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"partition": partition, "maxUnavailable": 1, "maxSurge": 0},
            },
        },
    }


def leader_of(pod: str) -> str:
    """The name of the leader of a worker, by the worker's."""
    return pod.rpartition("-")[0]


def worker_pod(leader: Body, labels: dict[str, str]) -> Body:
    """A worker's pod, made as its leader's is, but asked for nothing; `labels` are what workers are spread by."""
    containers = [
        {key: value for key, value in each.items() if key not in _ENDPOINT} for each in leader["containers"]
    ]
    spread = [each | {"labelSelector": {"matchLabels": labels}} for each in leader["topologySpreadConstraints"]]
    return leader | {"containers": containers, "topologySpreadConstraints": spread}
