"""The demo on somebody else's cluster: what is there is left alone, and what the demo made is removed with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import cluster as clusters
from e2e import demo, release
from e2e.cluster import Cluster, ClusterError, Kube, choice
from e2e.cluster.context import VALUES_FILE
from e2e.cluster.progress import Steps
from e2e.world import base_model

TEAM = "team"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster without MinT, next to the other tests' cluster."""
    backend = choice.make(
        choice.decide(None, None, None, docker=choice.docker_answers()),
        tmp_path_factory.mktemp("stranger") / "cluster",
    )
    cluster = backend.up(Steps())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        patch.setenv("PATH", cluster.env()["PATH"])
        patch.setenv(VALUES_FILE, str(_written(cluster, tmp_path_factory.mktemp("values"))))
        yield cluster.kube
    backend.down(Steps())


@pytest.fixture
def context(stranger: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The context by which the demo reaches that cluster, from a checkout without its own cluster."""
    monkeypatch.setenv("MINT_CLUSTER_DIR", str(tmp_path / "demo"))
    stranger.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}, "default")
    return stranger.kubectl("config", "current-context").strip()


def test_all_that_the_demo_made_goes_but_crds_that_others_use(context: str, stranger: Kube) -> None:
    cluster = clusters.up(context=context)
    demo.install(cluster, Steps())
    demo.install(cluster, Steps())  # upgrades its own release
    stranger.apply(base_model("smollm2", engines=1), TEAM)
    before = stranger.get("basemodel", "smollm2", TEAM)["metadata"]["uid"]

    demo.down(None)

    assert not release.installed(stranger)
    assert _names(stranger, "namespaces").isdisjoint({demo.NAMESPACE, release.NAMESPACE})
    assert stranger.get("basemodel", "smollm2", TEAM)["metadata"]["uid"] == before

    stranger.kubectl("delete", "basemodel", "smollm2", "-n", TEAM)
    demo.down(context)

    assert not {name for name in _names(stranger, "crds") if name.endswith("mint.dev")}


@pytest.fixture
def theirs(context: str, stranger: Kube) -> Kube:
    """The cluster after its owner has installed MinT as the chart's README says, with a base; no pod needs to run.

    The release stays until the cluster ends, which is cheaper than removing it: no other test may come after.
    """
    chart = str(release.ROOT / "charts" / "mint")
    images = [f"--set=images.{part}.repository=registry.example/mint" for part in ("operator", "gateway", "engine")]
    stranger.helm("install", release.NAME, chart, "-n", release.NAMESPACE, "--create-namespace", *images)
    stranger.apply(base_model("smollm2", engines=1), TEAM)
    return stranger


def test_a_release_of_the_owners_and_their_bases_outlive_the_demo(context: str, theirs: Kube) -> None:
    before = _owned(theirs)

    with pytest.raises(ClusterError, match=f"{release.NAMESPACE}/{release.NAME}"):
        demo.up(context)
    demo.down(None)  # as `make clean` would, much later: the context is remembered

    assert _owned(theirs) == before


def _written(cluster: Cluster, folder: Path) -> Path:
    values = folder / "values.json"
    values.write_text(json.dumps(cluster.values()))
    return values


def _names(kube: Kube, kind: str) -> set[str]:
    return set(kube.kubectl("get", kind, "-o", "jsonpath={.items[*].metadata.name}").split())


def _owned(kube: Kube) -> dict[str, Any]:
    """Return what the owner would miss: the release as helm knows it, and all objects by their uid."""
    released = json.loads(kube.helm("list", "-n", release.NAMESPACE, "-o", "json"))
    kinds = "namespaces,crds,deployments,services,statefulsets,basemodels"
    found = json.loads(kube.kubectl("get", kinds, "-A", "-o", "json"))["items"]
    named = {f"{each['kind']} {each['metadata']['name']}": each["metadata"]["uid"] for each in found}
    return {"releases": released, "objects": named}
