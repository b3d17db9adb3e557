"""Processes by pid and start time, so that a pid that the kernel has reused for another program is never touched."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError

POLL_S = 0.02


@dataclass(frozen=True)
class Process:
    """A process: its pid, and its start time in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether exactly this process still exists (a zombie does not count)."""
        return identify(self.pid) == self


def identify(pid: int) -> Process | None:
    """Return the process that has this pid now, or None."""
    fields = _stat(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return Process(pid, int(fields[19]))


def detach(command: Sequence[str], log: Path) -> int:
    """Start a program in a session of its own, with only a log that it appends to; return its pid.

    It gets none of this process's other files: a lock that a caller holds (`flock FILE make demo`) would stay locked,
    and a pipe open, for as long as it runs.
    """
    with log.open("ab") as appended:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=appended, stderr=appended, start_new_session=True
        )
    process.returncode = 0  # nobody here waits for it: without this, Popen would warn that it still runs
    return process.pid


def child_of(process: Process) -> Process | None:
    """Return a child of a process, if it has one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None and int(fields[1]) == process.pid:
                return identify(int(entry.name))
    return None


def end(process: Process, limit_s: float = 20.0) -> None:
    """Kill a process and wait until it is gone. Raises ClusterError if that takes longer than `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while process.alive:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        _reap(process.pid)
        if time.monotonic() > deadline:
            raise ClusterError(f"process {process.pid} does not end")
        time.sleep(POLL_S)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by an earlier command: init reaps it


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command's name (state first); None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()
