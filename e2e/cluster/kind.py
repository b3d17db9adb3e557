"""The kind backend: Kubernetes in a container of the Docker engine, with images built from the Dockerfile."""

import os
import shutil
from pathlib import Path

from e2e.cache import cache_folder
from e2e.cluster.backend import Cluster, Values
from e2e.cluster.clients import find_clients
from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import REPOSITORY, short_id
from e2e.cluster.progress import Steps

KIND_MODULE = "sigs.k8s.io/kind@v0.30.0"  # its default node is Kubernetes 1.34
IMAGES = {"control": "mint/control:dev", "engine": "mint/engine:dev"}
REDIS_IMAGE = "redis:7-alpine"
CREATE_LIMIT_S = 900.0
BUILD_LIMIT_S = 3600.0


def chart_values() -> Values:
    """Return the chart's images: two that are built here, and Redis's public one."""

    def image(name: str) -> dict[str, str]:
        repository, tag = name.rsplit(":", 1)
        return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}

    parts = {"operator": IMAGES["control"], "gateway": IMAGES["control"], "engine": IMAGES["engine"]}
    return {"images": {part: image(name) for part, name in {**parts, "redis": REDIS_IMAGE}.items()}}


class KindBackend:
    """Creates and deletes the kind cluster of one data folder."""

    name = "kind"

    def __init__(self, data: Path) -> None:
        self._data = data
        self._cluster_name = f"mint-{short_id(data)}"

    def up(self, steps: Steps) -> Cluster:
        """Find the kind cluster or create it, and build and load the images."""
        kind = self._kind(steps)
        find_clients(steps)  # builds missing ones, which `find` would take for a cluster that does not answer
        found = self.find()
        if found is None:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            run([kind, "delete", "cluster", "--name", self._cluster_name])
            create: list[str | Path] = [kind, "create", "cluster", "--name", self._cluster_name, "--wait", "180s"]
            with steps.step("create the kind cluster"):
                run([*create, "--kubeconfig", self._kubeconfig], limit_s=CREATE_LIMIT_S)
            found = self._cluster(steps)
        else:
            steps.say(f"kind cluster {self._cluster_name} reused")
        for target, image in IMAGES.items():
            with steps.step(f"build and load {image}"):
                build: list[str | Path] = ["docker", "build", "--target", target, "--tag", image, REPOSITORY]
                run(build, limit_s=BUILD_LIMIT_S)
                run([kind, "load", "docker-image", image, "--name", self._cluster_name], limit_s=CREATE_LIMIT_S)
        return found

    def down(self, steps: Steps) -> None:
        """Delete the kind cluster and the data folder; the images stay with the Docker engine."""
        with steps.step("delete the kind cluster"):
            run([self._kind(steps), "delete", "cluster", "--name", self._cluster_name], limit_s=CREATE_LIMIT_S)
            if self._data.exists():
                shutil.rmtree(self._data)

    def find(self) -> Cluster | None:
        """Return the kind cluster if its API server answers, else None."""
        if not self._kubeconfig.exists():
            return None
        try:
            cluster = self._cluster(None)
            cluster.kube.kubectl("get", "--raw", "/readyz", timeout_s=20.0)
        except ClusterError:
            return None
        return cluster

    def status(self) -> list[str]:
        """Return a line that says whether it is up, and where its data is."""
        return [f"kind cluster {self._cluster_name}: {'up' if self.find() else 'not up'}, data in {self._data}"]

    def import_image(self, archive: Path) -> None:
        """Load an archive into the kind node."""
        load = ["load", "image-archive", str(archive), "--name", self._cluster_name]
        run([self._kind(None), *load], limit_s=CREATE_LIMIT_S)

    @property
    def _kubeconfig(self) -> Path:
        return self._data / "kubeconfig"

    def _cluster(self, steps: Steps | None) -> Cluster:
        clients = find_clients(steps)
        return Cluster(self.name, self._kubeconfig, clients.kubectl, clients.helm, chart_values=chart_values())

    def _kind(self, steps: Steps | None) -> str:
        """Return kind from PATH or the cache, or install it there from its Go module. Raises ClusterError."""
        folder = cache_folder() / "kind"
        found = shutil.which("kind") or shutil.which("kind", path=str(folder))
        if found is not None:
            return found
        if steps is None or shutil.which("go") is None:
            raise ClusterError("kind is not installed, and Go is not there to install it")
        with steps.step("install kind"):
            env = {**os.environ, "GOBIN": str(folder), "GOFLAGS": ""}
            run(["go", "install", KIND_MODULE], env=env, limit_s=600.0)
        return str(folder / "kind")
