"""How much memory this process really holds, and which files the system caches in memory."""

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
    """Make the system drop a file from its page cache; return the bytes that stay because they are mapped.

    The file is synced first: pages that are not on disk yet cannot be dropped.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as view:
            every = np.frombuffer(view, dtype=np.uint8)
            stay = bytes_in_memory(every.ctypes.data, every.nbytes)
            del every  # otherwise the mapping could not be closed
            return stay
    finally:
        os.close(file)


def forget_all(paths: Iterable[Path]) -> None:
    """Make files exist on disk only. Raises RuntimeError if part of one stays in memory."""
    for path in paths:
        if stay := forget_pages(path):
            raise RuntimeError(f"{stay} bytes of {path.name} stay in memory: a load would not read the disk")


def read_bytes() -> int:
    """Return the bytes read from disks on behalf of this process, including its mappings."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])


def read_directly(path: Path) -> None:
    """Read a file of whole pages past the page cache, in large pieces: as fast as its disk allows.

    Reads go into huge pages, allocated once per thread: pinning small pages for the disk took 8 ms per 20 MB.
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
    """Return the resident bytes, including mapped files."""
    return _told("/proc/self/status", "VmRSS")


def available_bytes() -> int:
    """Return the bytes that programs can allocate before the machine runs out of memory."""
    return _told("/proc/meminfo", "MemAvailable")


def forget_peak() -> None:
    """Reset the peak of resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak of resident bytes since `forget_peak`."""
    return _told("/proc/self/status", "VmHWM")


def _told(path: str, name: str) -> int:
    """Return a figure that the system reports in kB, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} tells no {name}")
