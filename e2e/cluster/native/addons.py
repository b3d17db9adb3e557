"""What every native cluster has from the start: the host image's RuntimeClass and a default StorageClass."""

import json
from pathlib import Path

from e2e.cluster.native.config import RUNTIME_HANDLER
from e2e.cluster.native.images import HOST_IMAGE

STORAGE_CLASS = "mint-local"
PROVISIONER = "rancher.io/local-path"
NAMESPACE = "local-path-storage"  # the provisioner's own defaults, like the names below
ACCOUNT = "local-path-provisioner-service-account"
CONFIG_MAP = "local-path-config"
SETUP = '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n'
TEARDOWN = '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n'


def storage_config(volumes: Path) -> str:
    """Return the provisioner's configuration: every volume is a folder in `volumes`."""
    paths = [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(volumes)]}]
    return json.dumps({"nodePathMap": paths, "cmdTimeoutSeconds": 60}, indent=1) + "\n"


def storage_pod() -> str:
    """Return the pod that creates and removes those folders; the provisioner adds command, volumes and node."""
    container = {
        "name": "helper-pod",
        "image": HOST_IMAGE,
        "imagePullPolicy": "Never",
        "securityContext": {"runAsUser": 0, "runAsGroup": 0},
    }
    spec = {
        "runtimeClassName": RUNTIME_HANDLER,
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [container],
    }
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "helper-pod"}, "spec": spec}
    return json.dumps(document, indent=1) + "\n"


def manifests() -> str:
    """Return the objects to apply, as one List."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    items: list[dict[str, object]] = [
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": RUNTIME_HANDLER},
            "handler": RUNTIME_HANDLER,
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": STORAGE_CLASS, "annotations": default},
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE},
            "data": {"setup": SETUP, "teardown": TEARDOWN},
        },
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
