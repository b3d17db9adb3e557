"""Files on a file system that keeps synced data and renames atomically: visible only when complete, and durable."""

import os
from pathlib import Path


def publish(partial: Path, target: Path) -> None:
    """Rename a complete file or folder from its temporary name to its own, atomically and durably."""
    sync(partial)
    partial.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
