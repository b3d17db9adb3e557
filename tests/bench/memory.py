"""How much memory this process really holds, and what the system keeps of files."""

import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mint_engine.residency.remapping import bytes_in_memory, reserve

_PIECE_BYTES = 8 << 20
_own = threading.local()


def forget_pages(path: Path) -> int:
    """Have the system drop what it keeps in memory of a file; the bytes that stay, since somebody maps them.

    The file is written out first: what is not on the disk yet can not be dropped.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as view:
            every = np.frombuffer(view, dtype=np.uint8)
            stay = bytes_in_memory(every.ctypes.data, every.nbytes)
            del every  # or the mapping could not be closed
            return stay
    finally:
        os.close(file)


def forget_all(paths: Iterable[Path]) -> None:
    """Have files lie on the disk and nowhere else. Raises RuntimeError where some of one stays in memory."""
    for path in paths:
        if stay := forget_pages(path):
            raise RuntimeError(f"{stay} bytes of {path.name} stay in memory: a load would not read the disk")


def read_bytes() -> int:
    """Bytes that this process has had read from disks, for its mappings too."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])


def read_directly(path: Path) -> None:
    """Read a file of whole pages past the system's cache, a large piece at a time: as fast as its disk gives it.

    Into large pages, which are had once a thread: holding small ones for the disk took 8 ms for 20 MB.
    """
    if not hasattr(_own, "piece"):
        _own.piece = reserve(_PIECE_BYTES)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        while os.readv(file, [_own.piece]):
            pass
    finally:
        os.close(file)


def resident_bytes() -> int:
    """Resident bytes, mapped files included."""
    return _told("/proc/self/status", "VmRSS")


def available_bytes() -> int:
    """Bytes that programs can have before the machine runs out of memory."""
    return _told("/proc/meminfo", "MemAvailable")


def forget_peak() -> None:
    """Begin anew to note the most resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident bytes since `forget_peak`."""
    return _told("/proc/self/status", "VmHWM")


def _told(path: str, name: str) -> int:
    """A figure that the system tells in kB."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} tells no {name}")
