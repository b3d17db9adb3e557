"""Files on a disk, for tests of pages that leave memory."""

from pathlib import Path

import pytest


def on_disk(folder: Path) -> Path:
    """Return the same folder; skip the test if the folder is in memory itself."""
    if filesystem_of(folder) in {"tmpfs", "ramfs"}:
        pytest.skip(f"{folder} lies in memory: what is there can not leave it")
    return folder


def filesystem_of(path: Path) -> str:
    """Return the type of the filesystem of an existing path, e.g. "ext4"; see proc_pid_mountinfo(5)."""
    real, found, depth = path.resolve(), "", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        mount = Path(fields[4])
        if real.is_relative_to(mount) and len(mount.parts) >= depth:
            found, depth = fields[fields.index("-") + 1], len(mount.parts)
    return found
