"""The backend for a cluster that somebody else made: a context of a kubeconfig. Nothing is created or removed."""

import os
from pathlib import Path

from e2e.cluster.backend import Cluster
from e2e.cluster.clients import find_clients
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Steps


class ContextBackend:
    """Uses the named context of `KUBECONFIG` (its first file) or `~/.kube/config`."""

    name = "context"

    def __init__(self, context: str) -> None:
        self._context = context

    def up(self, steps: Steps) -> Cluster:
        """Check that the context answers; its images are named by values that its owner gives."""
        cluster = self._cluster(steps)
        with steps.step(f"ask context {self._context}"):
            cluster.kubectl_run("get", "--raw", "/readyz", limit_s=20.0)
        return cluster

    def down(self, steps: Steps) -> None:
        """Leave the cluster as it is: it is not ours."""
        steps.say(f"context {self._context} is left as it is")

    def find(self) -> Cluster | None:
        """The context, if it answers."""
        cluster = self._cluster(None)
        try:
            cluster.kubectl_run("get", "--raw", "/readyz", limit_s=20.0)
        except ClusterError:
            return None
        return cluster

    def status(self) -> list[str]:
        """Whether the context answers."""
        return [f"context {self._context}: {'answers' if self.find() else 'does not answer'}"]

    def import_image(self, archive: Path) -> None:
        """Not possible here."""
        raise ClusterError(f"cannot load {archive} into context {self._context}: push it to a registry that it reads")

    def _cluster(self, steps: Steps | None) -> Cluster:
        first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        kubeconfig = Path(first) if first else Path.home() / ".kube" / "config"
        clients = find_clients(steps)
        return Cluster(self.name, kubeconfig, clients.kubectl, clients.helm, self._context)
