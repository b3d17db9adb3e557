"""Finds and removes what a cluster leaves on the machine once its processes are gone: link, cgroups, data folder."""

import contextlib
import os
import shutil
import time
from pathlib import Path

from e2e.cluster.commands import answers, run
from e2e.cluster.errors import ClusterError
from e2e.cluster.native.layout import cgroup_name, veth_name
from e2e.cluster.paths import REPOSITORY

CGROUPS = Path("/sys/fs/cgroup")
LIMIT_S = 10.0
POLL_S = 0.05


def hierarchies() -> list[Path]:
    """Return the cgroup hierarchies: the one of cgroup v2, or each of v1's."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in sorted(CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def make_cgroups(data: Path) -> None:
    """Create the cluster's own cgroup in each hierarchy; the kubelet needs it as its root."""
    for hierarchy in hierarchies():
        (hierarchy / cgroup_name(data)).mkdir(exist_ok=True)


def found(data: Path) -> list[str]:
    """Return descriptions of what this cluster has left on the machine; empty if nothing is left."""
    cgroups = [f"cgroup {cgroup_name(data)}"] if _cgroups(data) else []
    link = [f"network link {veth_name(data)}"] if _linked(data) else []
    folder = [str(data)] if data.exists() else []
    return [*link, *cgroups, *folder]


def remove(data: Path) -> None:
    """Remove everything; the cluster's processes must be gone. Raises ClusterError if something remains."""
    if _linked(data):
        # The kernel may be removing it right now, along with the namespace that held the other end.
        with contextlib.suppress(ClusterError):
            run(["ip", "link", "delete", veth_name(data)])
    deadline = time.monotonic() + LIMIT_S
    for cgroup in _cgroups(data):
        _remove_cgroup(cgroup, deadline)
    if data.exists():
        shutil.rmtree(data)
        if data.parent == REPOSITORY / "build":
            with contextlib.suppress(OSError):  # it holds other builds
                data.parent.rmdir()
    left = found(data)
    if left:
        raise ClusterError(f"could not remove {', '.join(left)}")


def _cgroups(data: Path) -> list[Path]:
    roots = hierarchies() if CGROUPS.is_dir() else []
    return [path for root in roots if (path := root / cgroup_name(data)).exists()]


def _linked(data: Path) -> bool:
    return answers(["ip", "link", "show", veth_name(data)])


def _remove_cgroup(cgroup: Path, deadline: float) -> None:
    """Remove a cgroup and those in it, waiting for the kernel to release processes that have just ended."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        while True:
            try:
                Path(folder).rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"cgroup {folder} is still in use") from error
                time.sleep(POLL_S)
