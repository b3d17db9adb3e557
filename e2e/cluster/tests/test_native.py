"""The native cluster's guarantees, to pods and to the machine: it comes back after a crash and leaves nothing behind.

It runs next to this checkout's cluster, in its own data folder.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.backend import Cluster
from e2e.cluster.native import leftovers, machine
from e2e.cluster.native.backend import NativeBackend
from e2e.cluster.native.config import RUNTIME_HANDLER
from e2e.cluster.native.images import HOST_IMAGE
from e2e.cluster.native.processes import end
from e2e.cluster.progress import Steps

REPLACEMENT_LIMIT_S = 30.0
SERVER = "python -m http.server 8080 --directory /data"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeBackend]:
    backend = NativeBackend(tmp_path_factory.mktemp("native") / "cluster")
    yield backend
    backend.down(Steps())


@pytest.fixture
def cluster(backend: NativeBackend) -> Cluster:
    return backend.up(Steps())


def restricted_pod(command: str) -> dict[str, Any]:
    """Return a pod template restricted like the chart's: no root, read-only, no capabilities, seccomp; has /data."""
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "main",
        "image": HOST_IMAGE,
        "command": ["sh", "-c", command],
        "securityContext": security,
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/mint/tmp"}],
        "env": [{"name": "TMPDIR", "value": "/mint/tmp"}],
    }
    spec = {
        "runtimeClassName": RUNTIME_HANDLER,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {"metadata": {"labels": {"app": "web"}}, "spec": spec}


def apply_web(cluster: Cluster) -> None:
    """Apply two servers that share a claim of the default storage class, and a service in front of them."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    deployment = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": restricted_pod(SERVER)}
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    items = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
    ]
    cluster.kube.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    cluster.kube.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout_s=70.0)


def in_web(cluster: Cluster, code: str) -> str:
    """Return what a line of Python prints in one of the servers."""
    return cluster.kube.kubectl("exec", "deployment/web", "--", "python", "-c", code).strip()


def test_restricted_pods_have_storage_names_services_and_torch(cluster: Cluster) -> None:
    apply_web(cluster)
    fetch = "import urllib.request as r; print(r.urlopen('http://web.default.svc/shared').read().decode())"
    assert in_web(cluster, "open('/data/shared', 'w').write('hello')") == ""
    assert in_web(cluster, fetch) == "hello"
    assert in_web(cluster, "import os, torch; print(os.getuid(), int(torch.ones(2).sum()))") == "65532 2"
    assert in_web(cluster, "import os; print(os.access('/usr', os.W_OK), os.access('/', os.W_OK))") == "False False"


def test_a_pod_deleted_by_force_is_replaced_in_seconds(cluster: Cluster) -> None:
    apply_web(cluster)
    pod = cluster.kube.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
    started = time.monotonic()
    cluster.kube.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    cluster.kube.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout_s=70.0)
    assert time.monotonic() - started < REPLACEMENT_LIMIT_S


def test_a_healthy_cluster_is_reused(backend: NativeBackend, cluster: Cluster) -> None:
    folder = cluster.kubeconfig.parent
    before = machine.running(folder)
    assert backend.up(Steps()) == cluster
    assert machine.running(folder) == before


def test_a_killed_cluster_is_made_again_and_an_ended_one_leaves_nothing(
    backend: NativeBackend, cluster: Cluster
) -> None:
    folder = cluster.kubeconfig.parent
    killed = machine.running(folder)
    assert killed is not None
    end(killed.outer)
    fresh = backend.up(Steps())
    supervisor = machine.running(folder)
    assert supervisor is not None
    assert supervisor != killed
    assert fresh.kube.kubectl("get", "deployments", "-o", "name") == ""
    namespace = Path(f"/proc/{supervisor.inner.pid}/ns/mnt").readlink().name
    assert supervisor.inner.pid in processes_in(namespace)
    backend.down(Steps())
    assert backend.find() is None
    assert leftovers.found(folder) == []
    assert processes_in(namespace) == set()


def processes_in(namespace: str) -> set[int]:
    """Return the machine's processes in a mount namespace."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "ns" / "mnt").readlink().name == namespace:
                found.add(int(process.name))
        except (FileNotFoundError, PermissionError):  # it has ended, or is the machine's protected first process
            continue
    return found
