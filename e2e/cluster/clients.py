"""kubectl and helm for clusters that come without: from PATH, or built from the pinned Go modules."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.native import binaries
from e2e.cluster.progress import Steps


@dataclass(frozen=True)
class Clients:
    """The two programs that talk to any cluster."""

    kubectl: Path
    helm: Path


def find_clients(steps: Steps | None) -> Clients:
    """Find each in PATH or the cache, or build it if `steps` are given to show the progress.

    Raises ClusterError if one cannot be built, or must be built and `steps` is None.
    """
    found: dict[str, Path] = {}
    for name in binaries.CLIENTS:
        on_path, cached = shutil.which(name), binaries.folder() / name
        if on_path is not None:
            found[name] = Path(on_path)
        elif cached.exists():
            found[name] = cached
        elif steps is not None:
            found[name] = binaries.ensure(steps, [name]) / name
        else:
            raise ClusterError(f"{name} is not there: run `python -m e2e.cluster up`")
    return Clients(**found)
