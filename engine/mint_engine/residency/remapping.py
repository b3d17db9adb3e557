"""Memory whose pieces a file, or other memory, can take the place of: mmap and madvise at addresses of our choice.

A file that lies in the system's page cache is put into place without a byte being copied, and in pages of 2 MiB where
the filesystem keeps it in such: 0.11 ms for 20 MB where a copy took 2 ms, and reading it afterwards was as fast
(measured, ext4 of Linux 6.18, 2 cores). CPython's own mmap can neither take an address nor populate a private
mapping without copying it.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

HUGE = 2 << 20  # bytes of a large page, to which addresses and offsets in a file must agree
PAGE = mmap.PAGESIZE
# Bytes at the beginning of what somebody waits for, of which each large page is read by itself: what is read ahead
# comes as one, up to four of them, the first as late as the last.
_ALONE = 2 * HUGE

# Linux's own numbers (include/uapi/asm-generic/mman-common.h, mman.h); Python 3.11 names none of them.
_MAP_FIXED, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE, _MLOCK_ONFAULT = 0x10, 22, 23, 0x01
_MOVE = (
    0x1 | 0x2 | 0x4
)  # MREMAP_MAYMOVE, to the address that is given (_FIXED), where pages were stays mapped (_DONTUNMAP)
_FAILED = ctypes.c_void_p(-1).value
_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong
]  # fmt: skip
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mlock2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def reserve(nbytes: int) -> Bytes:
    """So many zero bytes, from where a large page can begin; none of them costs memory before it is used."""
    memory = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    every = np.frombuffer(memory, dtype=np.uint8)
    start = -every.ctypes.data % HUGE
    return every[start : start + nbytes]


def put_file(address: int, descriptor: int, nbytes: int, on_present: Callable[[int], None] | None = None) -> bool:
    """Let a file's first bytes take the place of what is at `address`, present so that no reader waits for a disk.

    What is written there later stays there and does not reach the file. `on_present` hears how many are present,
    piece by piece, and before the first of them. False, and zeros in its place, where this system can not do it.
    Raises OSError, with zeros in its place, where the file can not be read.
    """
    try:
        _map(address, nbytes, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor)
        _madvise(address, nbytes, mmap.MADV_HUGEPAGE)
        _try_populating()
    except OSError as error:
        put_zeros(address, nbytes)
        if error.errno in {errno.EINVAL, errno.ENODEV, errno.EPERM, errno.EACCES}:
            return False
        raise
    try:
        _bring_pieces(address, nbytes, on_present)
    except OSError:
        put_zeros(address, nbytes)
        raise
    return True


def _bring_pieces(address: int, nbytes: int, on_present: Callable[[int], None] | None) -> None:
    if on_present is None:
        bring_back(address, nbytes)
        return
    on_present(0)
    alone = min(nbytes, _ALONE)
    for advice, first, stop in (mmap.MADV_RANDOM, 0, alone), (mmap.MADV_NORMAL, alone, nbytes):
        _madvise(address, nbytes, advice)
        for present in range(first, stop, HUGE):
            size = min(HUGE, nbytes - present)
            bring_back(address + present, size)
            on_present(present + size)


def put_pages(address: int, source: int, nbytes: int) -> bool:
    """Let pages of `reserve`d memory at `source` take the place of what is at `address`; they leave zeros there.

    Both begin where large pages do, and `nbytes` are whole ones. False, and zeros at `address` alone, where this
    system can not do it.
    """
    if _libc.mremap(source, nbytes, nbytes, _MOVE, address) == address:
        return True
    put_zeros(address, nbytes)
    return False


def put_zeros(address: int, nbytes: int) -> None:
    """Let zeros take the place of what is at `address`, a page's beginning; its memory is given back. OSError."""
    if nbytes > 0:
        whole = -(-nbytes // PAGE) * PAGE
        _map(address, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1)
        _madvise(address, whole, mmap.MADV_HUGEPAGE)


def bring_back(address: int, nbytes: int) -> None:
    """Have what is mapped at `address` in memory, reading what has left it. OSError where that can not be read."""
    _madvise(address, nbytes, _MADV_POPULATE_READ)


def bring(address: int, nbytes: int) -> None:
    """As `bring_back`, from any address on: a block that can not be read ends the process that reads it in a mapping.

    Nothing where this system can not do it.
    """
    start = address - address % PAGE
    with _where_populated():
        bring_back(start, address + nbytes - start)


def bring_zeros(address: int, nbytes: int) -> None:
    """Have in memory, still zero, what nobody has written to, though it is mapped: not first when somebody does.

    OSError where there is no memory for it; nothing where this system can not do it. One large page after another,
    since whoever maps something waits for each.
    """
    at, end = address - address % PAGE, address + nbytes
    with _where_populated():
        while at < end:
            next_one = min(at - at % HUGE + HUGE, end)
            _madvise(at, next_one - at, _MADV_POPULATE_WRITE)
            at = next_one


def lock(address: int, nbytes: int) -> bool:
    """Keep what is in memory at `address` there until something else takes its place; False where we may not.

    Without MLOCK_ONFAULT the system would write-fault, and so copy, every page of a private mapping (mlock(2)).
    """
    if _libc.mlock2(address, nbytes, _MLOCK_ONFAULT) == 0:
        return True
    error = _error()
    if error.errno in {errno.EPERM, errno.ENOMEM, errno.EAGAIN, errno.ENOSYS}:
        return False
    raise error


def bytes_in_memory(address: int, nbytes: int) -> int:
    """How much of what is mapped at `address` a reader would find in memory, in whole pages up to `nbytes`."""
    found = np.zeros(-(-nbytes // PAGE), dtype=np.uint8)
    if _libc.mincore(address, nbytes, found.ctypes.data):
        raise _error()
    return min(int((found & 1).sum()) * PAGE, nbytes)


@cache
def _try_populating() -> None:
    """Raise OSError where this system populates no mapping: once a step waits for a file's pieces they must come."""
    page = np.frombuffer(mmap.mmap(-1, PAGE), dtype=np.uint8)
    _madvise(page.ctypes.data, PAGE, _MADV_POPULATE_READ)


@contextmanager
def _where_populated() -> Iterator[None]:
    """End quietly where this system populates no mapping."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:  # which systems before Linux 5.14 answer
            raise


def _map(address: int, nbytes: int, flags: int, descriptor: int) -> None:
    if _libc.mmap(address, nbytes, _WRITABLE, flags, descriptor, 0) == _FAILED:
        raise _error()


def _madvise(address: int, nbytes: int, advice: int) -> None:
    if _libc.madvise(address, nbytes, advice):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
