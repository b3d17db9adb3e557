"""What the end-to-end tests share: one cluster, one release, one base with two engines, one gateway address.

A cluster that was up before stays up; one that the tests made is removed after them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import cluster as clusters
from e2e import guest, stage
from e2e.cluster import Cluster, Kube
from e2e.samples import Samples, prepare
from e2e.world import NAMESPACE, GatewayForward, Waves, World, base_model, image_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real cluster."""
    before = clusters.find()
    yield clusters.up()
    if before is None:
        clusters.down()


@pytest.fixture(scope="session")
def kube(cluster: Cluster) -> Kube:
    """Its kubectl and helm."""
    return cluster.kube


@pytest.fixture(scope="session")
def samples() -> Samples:
    """The sample base and adapters on this machine's disk."""
    return prepare()


@pytest.fixture(scope="session")
def values(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Helm values of this cluster."""
    path = tmp_path_factory.mktemp("helm") / "values.json"
    path.write_text(json.dumps(cluster.values()))
    return path


@pytest.fixture(scope="session")
def world(kube: Kube, cluster: Cluster, samples: Samples, values: Path) -> Iterator[World]:
    """An installed release, the samples on a claim, and a Ready base with two engines."""
    guest.install(cluster, values)
    guest.add_namespace(cluster, NAMESPACE)
    stage.stage(kube, NAMESPACE, stage.folders(samples), samples.root.name, image_of(cluster.values()))
    kube.apply(base_model("smollm2", engines=2), NAMESPACE)
    kube.wait("basemodel/smollm2", "Ready", NAMESPACE, timeout_s=300)
    with GatewayForward(kube) as forwarded:
        yield World(kube, forwarded, samples)
    kube.kubectl("delete", "adapterwaves,basemodels", "--all", "-n", NAMESPACE, "--timeout=60s")


@pytest.fixture
def waves(world: World) -> Iterator[Waves]:
    """`waves(name, spec)` applies a wave, which is deleted after the test."""
    made: list[str] = []

    def apply(name: str, spec: dict[str, Any]) -> str:
        made.append(name)
        wave = {"apiVersion": "mint.dev/v1alpha1", "kind": "AdapterWave", "metadata": {"name": name}, "spec": spec}
        world.kube.apply(wave, NAMESPACE)
        return name

    yield apply
    for name in made:
        world.kube.kubectl("delete", "adapterwave", name, "-n", NAMESPACE, "--ignore-not-found", "--timeout=30s")
