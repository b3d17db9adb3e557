"""Redis' persistence settings cannot change while its StatefulSet exists; helm says so before it changes anything."""

import json
import re
from typing import Any

import pytest

from tests.apiserver import ApiServer
from tests.chart.rendering import DEFAULTS, HelmError, render, workloads

AS_IT_IS: dict[str, Any] = {}
GROWN: dict[str, Any] = {"size": "2Gi"}
MOVED: dict[str, Any] = {"storageClassName": "fast"}
DROPPED: dict[str, Any] = {"enabled": False}


def upgrade(server: ApiServer, namespace: str, persistence: dict[str, Any]) -> None:
    """Render the chart as `helm upgrade` does, which looks up existing objects."""
    cluster = ("--dry-run=server", "--kubeconfig", str(server.kubeconfig))
    redis = workloads(render({"redis": {"persistence": persistence}}, "-n", namespace, *cluster))["mint-redis"]
    assert redis["metadata"]["namespace"] == namespace


@pytest.mark.parametrize("change", [GROWN, MOVED, DROPPED], ids=lambda change: next(iter(change)))
def test_a_change_is_refused_by_the_command_that_makes_room_for_it(
    api_server: ApiServer, change: dict[str, Any]
) -> None:
    namespace = api_server.namespace(f"redis-{next(iter(change)).lower()}")
    upgrade(api_server, namespace, AS_IT_IS)  # nothing exists yet
    redis = workloads(render(DEFAULTS, "-n", namespace))["mint-redis"]
    api_server.kubectl("apply", "-f", "-", stdin=json.dumps(redis))
    upgrade(api_server, namespace, AS_IT_IS)
    with pytest.raises(
        HelmError, match="persistence cannot change while the StatefulSet mint-redis exists"
    ) as refusal:
        upgrade(api_server, namespace, change)
    [command] = re.findall(r"kubectl (delete -n \S+ statefulset/\S+ pvc/\S+ --ignore-not-found),", str(refusal.value))
    api_server.kubectl(*command.split())
    upgrade(api_server, namespace, change)


def test_without_a_claim_the_size_limits_the_pods_folder_and_may_change(api_server: ApiServer) -> None:
    namespace = api_server.namespace("redis-without-claim")
    redis = workloads(render({"redis": {"persistence": DROPPED}}, "-n", namespace))["mint-redis"]
    api_server.kubectl("apply", "-f", "-", stdin=json.dumps(redis))
    upgrade(api_server, namespace, DROPPED | GROWN)


def test_a_release_without_the_annotation_is_left_to_kubernetes(api_server: ApiServer) -> None:
    namespace = api_server.namespace("redis-of-before")
    redis = workloads(render(DEFAULTS, "-n", namespace))["mint-redis"]
    del redis["metadata"]["annotations"]
    api_server.kubectl("apply", "-f", "-", stdin=json.dumps(redis))
    upgrade(api_server, namespace, AS_IT_IS)
