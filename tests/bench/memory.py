"""How much memory this process really holds, and what the system keeps of files."""

import mmap
import os
from pathlib import Path

_PIECE_BYTES = 8 << 20


def forget_pages(folder: Path) -> None:
    """Let the system drop what it keeps in memory of a folder's files, so that reading them reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def read_directly(path: Path) -> None:
    """Read a file of whole pages past the system's cache, a large piece at a time: as fast as its disk gives it."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, _PIECE_BYTES) as piece:  # begins at a page, as direct reads must
            while os.readv(file, [piece]):
                pass
    finally:
        os.close(file)


def resident_bytes() -> int:
    """Resident bytes, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status tells no VmRSS")


def forget_peak() -> None:
    """Begin anew to note the most resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident bytes since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status tells no VmHWM")
