"""Process 1 of the cluster's namespaces: starts the components, restarts those that end, and reaps orphans.

Run as `python -m e2e.cluster.native.supervise PLAN`. When it dies, the kernel kills all processes in its namespaces.
"""

import json
import os
import random
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.native import namespaces
from e2e.cluster.native.components import Component
from e2e.cluster.native.layout import PRIVATE
from e2e.cluster.native.packages import SYSTEM_PATH
from e2e.cluster.native.plan import from_text

GATE_PERIOD_S = 0.05
IDLE_S = 60.0
BACKOFF_S = (0.2, 5.0)  # first and longest pause before a restart
STEADY_S = 30.0  # after running this long, a program's earlier failures no longer count
STATE = "components.json"


@dataclass
class Kept:
    """A component and its process: `pid` is None while it waits for `due` (monotonic seconds) or its gate."""

    component: Component
    due: float = 0.0
    pid: int | None = None
    starts: int = 0
    failures: int = 0
    started: float = 0.0
    ended: str = ""


def pause(failures: int, spread: float) -> float:
    """Return the seconds before the next start after `failures` in a row; `spread` in 0..1 is the jitter."""
    shortest, longest = BACKOFF_S
    return min(shortest * 2.0 ** (failures - 1), longest) * (0.75 + spread / 2)


class Supervisor:
    """Keeps the components running until it is killed."""

    def __init__(self, components: tuple[Component, ...]) -> None:
        self._kept = [Kept(component) for component in components]
        self._gates: set[str] = set()
        self._tls = ssl.create_default_context(cafile=str(PRIVATE / "pki" / "ca.crt"))

    def run(self) -> None:
        """Reap what has ended, start what is due, and wait for the next of either; forever."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            changed = self._reap()
            changed = self._start_due() or changed
            if changed:
                self._write_state()
            signal.sigtimedwait({signal.SIGCHLD}, self._patience())

    def _patience(self) -> float:
        return GATE_PERIOD_S if any(kept.pid is None for kept in self._kept) else IDLE_S

    def _reap(self) -> bool:
        by_pid = {kept.pid: kept for kept in self._kept if kept.pid is not None}
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if pid == 0:
                return changed
            kept = by_pid.get(pid)
            if kept is not None:
                self._ended(kept, status)
                changed = True

    def _ended(self, kept: Kept, status: int) -> None:
        now = time.monotonic()
        kept.failures = 1 if now - kept.started > STEADY_S else kept.failures + 1
        kept.pid, kept.ended = None, f"status {os.waitstatus_to_exitcode(status)}"
        kept.due = now + pause(kept.failures, random.random())
        _say(f"component={kept.component.name} event=ended {kept.ended.replace(' ', '=')}")

    def _start_due(self) -> bool:
        changed = False
        for kept in self._kept:
            if kept.pid is None and kept.due <= time.monotonic() and self._open(kept.component.gate):
                self._start(kept)
                changed = True
        return changed

    def _open(self, gate: str | None) -> bool:
        if gate is None or gate in self._gates:
            return True
        try:
            with urllib.request.urlopen(gate, context=self._tls, timeout=1.0):
                self._gates.add(gate)
                return True
        except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError):
            return False

    def _start(self, kept: Kept) -> None:
        component = kept.component
        log = os.open(PRIVATE / "logs" / f"{component.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        env = {"PATH": SYSTEM_PATH, "HOME": str(PRIVATE), "TMPDIR": str(PRIVATE / "tmp"), **component.env}
        kept.pid = os.posix_spawnp(
            component.argv[0], component.argv, env, file_actions=actions, setsigmask=(), setpgroup=0
        )
        os.close(log)
        kept.started = time.monotonic()
        kept.starts += 1
        _say(f"component={component.name} event=started pid={kept.pid} start={kept.starts}")

    def _write_state(self) -> None:
        state = {
            kept.component.name: {"running": kept.pid is not None, "starts": kept.starts, "ended": kept.ended}
            for kept in self._kept
        }
        fresh = PRIVATE / f"{STATE}.new"
        fresh.write_text(json.dumps(state))
        fresh.replace(PRIVATE / STATE)


def _say(event: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {event}", flush=True)


def main(path: Path) -> None:
    """Read the plan, set up the namespaces as a node, and keep its components running."""
    plan = from_text(path.read_text())
    layout = plan.layout
    os.umask(0o022)
    namespaces.cover(plan.needed, layout.data)
    namespaces.pretend_kernel_settings()
    namespaces.connect(layout)
    _say(f"event=connected node={layout.node_ip} machine={layout.machine_ip}")
    Supervisor(plan.components).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
