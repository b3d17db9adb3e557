"""What all backends have in common: a running `Cluster`, and the small protocol that makes one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from e2e.cluster.kube import Kube
from e2e.cluster.progress import Steps

Values = dict[str, object]


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers, and the programs to talk to it."""

    backend: str
    kubeconfig: Path
    kubectl: Path
    helm: Path
    context: str | None = None
    chart_values: Values = field(default_factory=dict)

    def values(self) -> Values:
        """Return the Helm values for this cluster, to be merged over those of `charts/mint`."""
        return dict(self.chart_values)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return `base` (by default this process's environment) with KUBECONFIG and PATH set for this cluster."""
        env = dict(os.environ if base is None else base)
        folders = dict.fromkeys([str(self.kubectl.parent), str(self.helm.parent)])
        env["KUBECONFIG"] = str(self.kubeconfig)
        env["PATH"] = os.pathsep.join([*folders, env.get("PATH", os.defpath)])
        return env

    @property
    def kube(self) -> Kube:
        """Its kubectl and helm as methods."""
        return Kube(self.kubectl, self.helm, self.kubeconfig, self.context)


class Backend(Protocol):
    """One way of getting a cluster for a data folder."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    def up(self, steps: Steps) -> Cluster:
        """Create the cluster, or find it up and healthy; idempotent. Raises ClusterError."""
        ...

    def down(self, steps: Steps) -> None:
        """Delete the cluster and everything that belongs to it; idempotent. Raises ClusterError."""
        ...

    def find(self) -> Cluster | None:
        """Return the cluster if it answers now, else None; changes nothing."""
        ...

    def status(self) -> list[str]:
        """Return the cluster's state, as lines for people."""
        ...

    def import_image(self, archive: Path) -> None:
        """Load the images of a docker or OCI archive into the cluster's nodes. Raises ClusterError."""
        ...
