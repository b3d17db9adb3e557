"""A real Kubernetes cluster for the demo and the end-to-end tests: `up()` returns a `Cluster` on any machine.

from e2e.cluster import up
cluster = up()
cluster.kube.kubectl("get", "nodes")
"""

from e2e.cluster import choice
from e2e.cluster.backend import Backend, Cluster
from e2e.cluster.errors import ClusterError, CommandFailedError
from e2e.cluster.kube import Kube
from e2e.cluster.paths import data_folder
from e2e.cluster.progress import Steps

__all__ = ["Cluster", "ClusterError", "CommandFailedError", "Kube", "backend", "down", "find", "up"]


def backend(wanted: str | None, context: str | None) -> Backend:
    """Return the backend of this checkout's data folder: forced, used before, or chosen by what the machine has."""
    return choice.make(_choose(wanted, context), data_folder())


def up(wanted: str | None = None, context: str | None = None, steps: Steps | None = None) -> Cluster:
    """Create the cluster or find it up; idempotent. Raises ClusterError that says what to do."""
    data = data_folder()
    chosen = _choose(wanted, context)
    used = choice.used_before(data)
    if used is not None and used != chosen:
        raise ClusterError(f"a cluster of backend {used.name} may be up: run `python -m e2e.cluster down` first")
    choice.remember(chosen, data)
    return choice.make(chosen, data).up(steps or Steps())


def down(wanted: str | None = None, context: str | None = None) -> None:
    """Delete the cluster and everything that belongs to it except the cache; idempotent. Raises ClusterError."""
    backend(wanted, context).down(Steps())
    choice.forget(data_folder())


def find(wanted: str | None = None, context: str | None = None) -> Cluster | None:
    """Return the cluster if it answers now, else None."""
    return backend(wanted, context).find()


def _choose(wanted: str | None, context: str | None) -> choice.Choice:
    used = choice.used_before(data_folder())
    undecided = wanted is None and context is None and used is None
    return choice.decide(wanted, context, used, docker=undecided and choice.docker_answers())
