"""The log of a process that may still be writing it."""

from pathlib import Path


def whole_lines(log: Path) -> list[str]:
    """Return the complete lines written so far, without one that is still being written."""
    return log.read_text().rpartition("\n")[0].splitlines()
