"""The log of a process that may still write it."""

from pathlib import Path


def whole_lines(log: Path) -> list[str]:
    """The lines that have been written until now, without the one that is being written."""
    return log.read_text().rpartition("\n")[0].splitlines()
