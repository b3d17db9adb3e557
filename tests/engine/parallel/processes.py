"""The processes of an engine's other ranks."""

import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    told = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        return [int(child) for each in told for child in each.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return []


def followers(pid: int = 0) -> list[int]:
    """The ranks that a process (0: this one) has started: its nursery's children."""
    return [rank for nursery in _forking(pid or os.getpid()) for rank in _forking(nursery)]


def _forking(pid: int) -> list[int]:
    """Of its children the nurseries and ranks, which both have the nurseries' command."""
    return [child for child in children(pid) if b"parallel.forking" in _command(child)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
        return b""
