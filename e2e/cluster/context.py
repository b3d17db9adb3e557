"""The backend for somebody else's cluster: a context of a kubeconfig. No cluster is created or removed."""

import os
from pathlib import Path

import yaml

from e2e.cluster.backend import Cluster, Values
from e2e.cluster.clients import find_clients
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Steps

VALUES_FILE = "MINT_VALUES"


class ContextBackend:
    """Uses a context of `KUBECONFIG` (its first file) or `~/.kube/config`, and the Helm values in `MINT_VALUES`."""

    name = "context"

    def __init__(self, context: str) -> None:
        self._context = context

    def up(self, steps: Steps) -> Cluster:
        """Check that the context answers and that MINT_VALUES names images that it can pull. Raises ClusterError."""
        cluster = self._cluster(steps)
        if "images" not in cluster.values():
            raise ClusterError(
                f"set {VALUES_FILE} to a file of Helm values whose `images` context {self._context} can pull"
                " (`make images` builds them; charts/mint/README.md says how, and the keys are in its values.yaml)"
            )
        with steps.step(f"ask context {self._context}"):
            cluster.kube.kubectl("get", "--raw", "/readyz", timeout_s=20.0)
        return cluster

    def down(self, steps: Steps) -> None:
        """Leave the cluster as it is, since it is not ours."""
        steps.say(f"context {self._context} is left as it is")

    def find(self) -> Cluster | None:
        """Return the context's cluster if it answers, else None."""
        cluster = self._cluster(None)
        try:
            cluster.kube.kubectl("get", "--raw", "/readyz", timeout_s=20.0)
        except ClusterError:
            return None
        return cluster

    def status(self) -> list[str]:
        """Return a line that says whether the context answers."""
        return [f"context {self._context}: {'answers' if self.find() else 'does not answer'}"]

    def import_image(self, archive: Path) -> None:
        """Raise ClusterError: the nodes of somebody else's cluster cannot be reached."""
        raise ClusterError(f"cannot load {archive} into context {self._context}: push it to a registry that it reads")

    def _cluster(self, steps: Steps | None) -> Cluster:
        first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        kubeconfig = Path(first) if first else Path.home() / ".kube" / "config"
        clients = find_clients(steps)
        return Cluster(self.name, kubeconfig, clients.kubectl, clients.helm, self._context, given_values())


def given_values() -> Values:
    """Return the owner's Helm values; empty if none are given. Raises ClusterError if the file does not hold any."""
    path = os.environ.get(VALUES_FILE)
    if not path:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ClusterError(f"{VALUES_FILE}={path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ClusterError(f"{VALUES_FILE}={path} must hold a mapping like charts/mint/values.yaml")
    return values
