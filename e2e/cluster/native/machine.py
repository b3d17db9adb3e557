"""The supervisor from the machine's side: started in fresh namespaces, connected by a link, found by its pids."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.native.layout import UPLINK, Layout
from e2e.cluster.native.processes import Process, child_of, detach, end, identify
from e2e.cluster.paths import REPOSITORY

RECORD = "supervisor.json"
CHILD_LIMIT_S = 10.0
# The kernel kills a pid namespace's processes when its first process ends, and that one when `unshare` ends.
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True)
class Supervisor:
    """`outer` is `unshare` on the machine; `inner` is process 1 of the namespaces, by its pid on the machine."""

    outer: Process
    inner: Process

    @property
    def alive(self) -> bool:
        """Whether both processes that keep the cluster running are alive."""
        return self.outer.alive and self.inner.alive

    def inside(self, path: str) -> Path:
        """Return the path by which the machine can open a path in the cluster's namespaces."""
        return Path(f"/proc/{self.inner.pid}/root{path}")

    def end(self) -> None:
        """Kill it, and with it every process of the cluster. Raises ClusterError if one of the two does not end."""
        end(self.outer)
        end(self.inner)


def start(layout: Layout, plan: Path) -> Supervisor:
    """Start the detached supervisor, record it, and connect its network to the machine's. Raises ClusterError."""
    command = [*UNSHARE, f"--wd={REPOSITORY}", sys.executable, "-m", "e2e.cluster.native.supervise", str(plan)]
    outer = identify(detach(command, layout.logs / "supervisor.log"))
    if outer is None:
        raise ClusterError("the supervisor ended at once")
    supervisor = Supervisor(outer, _first_process(outer))
    (layout.data / RECORD).write_text(json.dumps(asdict(supervisor)))
    peer = ["peer", "name", UPLINK, "netns", str(supervisor.inner.pid)]
    run(["ip", "link", "add", layout.veth, "type", "veth", *peer])
    run(["ip", "address", "add", f"{layout.machine_ip}/{layout.link.prefixlen}", "dev", layout.veth])
    run(["ip", "link", "set", layout.veth, "up"])
    return supervisor


def recorded(data: Path) -> Supervisor | None:
    """Return the supervisor that the data folder names, dead or alive; None if it names none."""
    try:
        record = json.loads((data / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Supervisor(Process(**record["outer"]), Process(**record["inner"]))


def running(data: Path) -> Supervisor | None:
    """Return the recorded supervisor of the data folder if it is alive, else None."""
    supervisor = recorded(data)
    return supervisor if supervisor is not None and supervisor.alive else None


def _first_process(outer: Process) -> Process:
    """Return process 1 of the namespaces; `unshare` forks it right after making them."""
    deadline = time.monotonic() + CHILD_LIMIT_S
    while (inner := child_of(outer)) is None:
        if not outer.alive or time.monotonic() > deadline:
            raise ClusterError("the supervisor ended at once: are new namespaces allowed on this machine?")
        time.sleep(0.01)
    return inner
