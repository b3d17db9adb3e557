"""What every way of getting a cluster has in common: a running `Cluster`, and the small protocol that makes one."""

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
        """Helm values of this cluster, to be merged over those of `charts/mint`."""
        return dict(self.chart_values)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (this process's environment by default) with KUBECONFIG and PATH set for this cluster."""
        env = dict(os.environ if base is None else base)
        folders = dict.fromkeys([str(self.kubectl.parent), str(self.helm.parent)])
        env["KUBECONFIG"] = str(self.kubeconfig)
        env["PATH"] = os.pathsep.join([*folders, env.get("PATH", os.defpath)])
        return env

    @property
    def kube(self) -> Kube:
        """Its kubectl and helm, to be called."""
        return Kube(self.kubectl, self.helm, self.kubeconfig, self.context)


class Backend(Protocol):
    """One way of getting a cluster for a data folder."""

    @property
    def name(self) -> str:
        """The word for it on the command line."""
        ...

    def up(self, steps: Steps) -> Cluster:
        """Make the cluster, or find it up and healthy; idempotent. Raises ClusterError."""
        ...

    def down(self, steps: Steps) -> None:
        """End the cluster and everything that belongs to it; idempotent. Raises ClusterError."""
        ...

    def find(self) -> Cluster | None:
        """The cluster if it answers now, else None; changes nothing."""
        ...

    def status(self) -> list[str]:
        """What is there, in lines for a person."""
        ...

    def import_image(self, archive: Path) -> None:
        """Make the images of a docker or OCI archive known to the cluster's nodes. Raises ClusterError."""
        ...
