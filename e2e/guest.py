"""MinT's release on any cluster; on somebody else's as a guest, which does not touch what others made.

What a guest makes has a label in the cluster, by which every checkout knows what it may change and remove.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from e2e import release
from e2e.cluster import Cluster, ClusterError, Kube
from e2e.cluster.progress import Steps

LABEL, MAKER = "mint.dev/made-by", "demo"
MARK = f"{LABEL}={MAKER}"
OPERATORS = "app.kubernetes.io/name=mint,app.kubernetes.io/component=operator"
INSTANCE = "app.kubernetes.io/instance"
DELETION_LIMIT_S = 180


def install(cluster: Cluster, values: Path) -> None:
    """Install or upgrade the release and wait until it is available. Idempotent.

    Raises ClusterError on somebody else's cluster if it has a MinT that this did not install.
    """
    kube = cluster.kube
    if not _guest(cluster):
        release.install(kube, values)
        return
    others = _others(kube)
    if others:
        raise ClusterError(
            f"MinT is already installed in context {kube.context}: {', '.join(others)}; nothing was changed. Use that"
            " release (charts/mint/README.md says how: apply crds/samples/basemodel.yaml and adapterwave.yaml to a"
            " namespace that it watches), or give a context without MinT"
        )
    crds = [yaml.safe_load(path.read_text()) for path in sorted((release.ROOT / "crds").glob("*.yaml"))]
    for manifest in [_namespace(release.NAMESPACE), *crds]:
        _create(kube, manifest)
    release.install(kube, values, "--labels", MARK)


def add_namespace(cluster: Cluster, name: str) -> None:
    """Create a namespace for experiments; on somebody else's cluster, `leave` removes it."""
    namespace = _namespace(name)
    cluster.kube.apply(_marked(namespace) if _guest(cluster) else namespace, "default")


def leave(kube: Kube, steps: Steps) -> None:
    """Remove what has the label, and say what stays. Idempotent.

    Namespaces are deleted before the release, whose operator ends what is in them. CRDs stay while anybody uses them,
    since every BaseModel and AdapterWave in the cluster would be deleted with them.
    """
    not_the_releases = f"metadata.name!={release.NAMESPACE}"
    with steps.step("delete the namespaces that the demo made"):
        _delete(kube, "namespace", "--field-selector", not_the_releases)
    if release.installed(kube, MARK):
        with steps.step(f"helm uninstall {release.NAME}"):
            release.uninstall(kube)
    others = _others(kube)
    used_by = [*others, *_custom_resources(kube)]
    if used_by:
        steps.say(f"left alone, with the CRDs: {', '.join(used_by)}")
    else:
        _delete(kube, "crd")
    if not any(other.startswith(f"{release.NAMESPACE}/") for other in others):
        with steps.step("delete the release's namespace, if the demo made it"):
            _delete(kube, "namespace")


def _guest(cluster: Cluster) -> bool:
    return cluster.backend == "context"


def _others(kube: Kube) -> list[str]:
    """Return MinT's releases without the label, as "namespace/name"; also those made by GitOps, unknown to helm."""
    ours = f"{release.NAMESPACE}/{release.NAME}"
    found = json.loads(kube.kubectl("get", "deployments", "-A", "-l", OPERATORS, "-o", "json"))["items"]
    releases = {f"{each['metadata']['namespace']}/{each['metadata']['labels'][INSTANCE]}" for each in found}
    if release.installed(kube):
        releases.add(ours)
    if release.installed(kube, MARK):
        releases.remove(ours)
    return sorted(releases)


def _custom_resources(kube: Kube) -> list[str]:
    """Return every object of the CRDs that have the label, as "Kind namespace/name"."""
    crds = kube.kubectl("get", "crd", "-l", MARK, "-o", "jsonpath={.items[*].metadata.name}").split()
    if not crds:
        return []
    found = json.loads(kube.kubectl("get", ",".join(crds), "-A", "-o", "json"))["items"]
    return [f"{each['kind']} {each['metadata']['namespace']}/{each['metadata']['name']}" for each in found]


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _marked(manifest: dict[str, Any]) -> dict[str, Any]:
    metadata = manifest["metadata"]
    return manifest | {"metadata": metadata | {"labels": metadata.get("labels", {}) | {LABEL: MAKER}}}


def _create(kube: Kube, manifest: dict[str, Any]) -> None:
    """Create an object with the label; an existing one stays as it is, without it."""
    if not kube.kubectl("get", manifest["kind"], manifest["metadata"]["name"], "--ignore-not-found", "-o", "name"):
        kube.kubectl("create", "-f", "-", stdin=json.dumps(_marked(manifest)))


def _delete(kube: Kube, kind: str, *selecting: str) -> None:
    kube.kubectl("delete", kind, "-l", MARK, *selecting, timeout_s=DELETION_LIMIT_S)
