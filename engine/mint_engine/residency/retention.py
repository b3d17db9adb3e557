"""How the contents of slots are kept in memory when the system runs short of it.

The pages of a mapped file are clean: the system may drop them at any time, and a step that reads them then waits for
the disk. If this process may lock as much memory as all slots have, the pages are locked. Otherwise they are checked
every few seconds, and pages that were dropped are read back concurrently with the steps, so that no adapter in use
is out of memory for long; the bytes that were dropped are counted.
"""

import resource
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

import msgspec

_CAP_IPC_LOCK = 14  # capabilities(7): its holder may lock any amount of memory


class Retention(Enum):
    """The method in force, in the words that `GetInfo` reports."""

    COPIED = "copies of the process's own"
    LOCKED = "packed files' pages, locked in memory"
    BROUGHT_BACK = "packed files' pages, brought back when they leave memory (raise RLIMIT_MEMLOCK to lock them)"


class RetentionReport(msgspec.Struct, frozen=True):
    """Bytes of files' pages in slots: all of them, those that are locked, and those that had been dropped."""

    mapped: int = 0
    locked: int = 0
    lost: int = 0

    @property
    def share(self) -> float:
        """Fraction of the mapped bytes that was in memory."""
        return 1 - self.lost / self.mapped if self.mapped else 1.0

    @staticmethod
    def of(parts: "Iterable[RetentionReport]") -> "RetentionReport":
        """Return the sum of several."""
        every = list(parts)
        return RetentionReport(*(sum(getattr(each, name) for each in every) for name in ("mapped", "locked", "lost")))


def can_lock(nbytes: int) -> bool:
    """Return whether this process may lock `nbytes` of memory; raises its soft limit to the hard one if needed."""
    if has_capability(Path("/proc/self/status").read_text(), _CAP_IPC_LOCK):
        return True
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return hard == resource.RLIM_INFINITY or nbytes <= hard


def has_capability(status: str, number: int) -> bool:
    """Return whether the process whose /proc/PID/status this is has a capability in force."""
    lines = (line.partition(":") for line in status.splitlines())
    effective = next((value for name, _, value in lines if name == "CapEff"), "0")
    return bool(int(effective, 16) >> number & 1)
