"""Memory whose parts can be replaced by a file or by other memory: mmap and madvise at addresses that we choose.

A file in the system's page cache is mapped into place without copying a byte, in pages of 2 MiB if the filesystem
caches it in such pages: this took 0.11 ms for 20 MB, a copy 2 ms, and reading it afterwards was as fast (measured on
ext4, Linux 6.18, 2 cores). CPython's own mmap can neither take an address nor populate a private mapping without
copying it.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

HUGE = 2 << 20  # bytes of a large page; address and file offset must be equal modulo this
PAGE = mmap.PAGESIZE
# The first bytes of an awaited file, which are read one large page at a time. Readahead would fetch up to four large
# pages as one read, so that the first would arrive as late as the last.
_ALONE = 2 * HUGE

# Linux's own numbers (include/uapi/asm-generic/mman-common.h, mman.h); Python 3.11 names none of them.
_MAP_FIXED, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE, _MLOCK_ONFAULT = 0x10, 22, 23, 0x01
_MOVE = 0x1 | 0x2 | 0x4  # MREMAP_MAYMOVE, to the given address (_FIXED), leaving the old range mapped (_DONTUNMAP)
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
    """Return `nbytes` zero bytes, aligned to a large page; they take no memory before they are used."""
    memory = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    every = np.frombuffer(memory, dtype=np.uint8)
    start = -every.ctypes.data % HUGE
    return every[start : start + nbytes]


def put_file(address: int, descriptor: int, nbytes: int, on_present: Callable[[int], None] | None = None) -> bool:
    """Map a file's first `nbytes` at `address`, replacing what is there, and read them into memory.

    Later writes to this memory do not reach the file. `on_present` is called with the number of bytes present, first
    with 0 and then after each piece. Returns False, leaving zeros, if this system cannot do it. Raises OSError,
    leaving zeros, if the file cannot be read.
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
        _populate_pieces(address, nbytes, on_present)
    except OSError:
        put_zeros(address, nbytes)
        raise
    return True


def _populate_pieces(address: int, nbytes: int, on_present: Callable[[int], None] | None) -> None:
    if on_present is None:
        populate_pages(address, nbytes)
        return
    on_present(0)
    alone = min(nbytes, _ALONE)
    for advice, first, stop in (mmap.MADV_RANDOM, 0, alone), (mmap.MADV_NORMAL, alone, nbytes):
        _madvise(address, nbytes, advice)
        for present in range(first, stop, HUGE):
            size = min(HUGE, nbytes - present)
            populate_pages(address + present, size)
            on_present(present + size)


def put_pages(address: int, source: int, nbytes: int) -> bool:
    """Move pages of memory from `reserve` at `source` to `address`, replacing what is there; leave zeros at `source`.

    Both addresses and `nbytes` must be multiples of HUGE. Returns False, leaving zeros only at `address`, if this
    system cannot do it.
    """
    if _libc.mremap(source, nbytes, nbytes, _MOVE, address) == address:
        return True
    put_zeros(address, nbytes)
    return False


def put_zeros(address: int, nbytes: int) -> None:
    """Replace what is at `address`, which must begin a page, with zeros, and release its memory. Raises OSError."""
    if nbytes > 0:
        whole = -(-nbytes // PAGE) * PAGE
        _map(address, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1)
        _madvise(address, whole, mmap.MADV_HUGEPAGE)


def populate_pages(address: int, nbytes: int) -> None:
    """Read what is mapped at `address` and not in memory. Raises OSError if it cannot be read."""
    _madvise(address, nbytes, _MADV_POPULATE_READ)


def populate(address: int, nbytes: int) -> None:
    """Do as `populate_pages`, from any address: touching a mapped block that cannot be read would kill the process.

    Does nothing if this system cannot do it.
    """
    start = address - address % PAGE
    with _where_populated():
        populate_pages(start, address + nbytes - start)


def populate_zeros(address: int, nbytes: int) -> None:
    """Allocate mapped memory that has not been written to yet, still zero, so that writing to it need not.

    Raises OSError if there is no memory for it; does nothing if this system cannot do it. Populates one large page
    per call, since other threads' mmap calls wait for each call.
    """
    at, end = address - address % PAGE, address + nbytes
    with _where_populated():
        while at < end:
            next_one = min(at - at % HUGE + HUGE, end)
            _madvise(at, next_one - at, _MADV_POPULATE_WRITE)
            at = next_one


def lock(address: int, nbytes: int) -> bool:
    """Lock what is in memory at `address` until it is replaced; return False if we may not.

    Without MLOCK_ONFAULT the system would write-fault, and so copy, every page of a private mapping (mlock(2)).
    """
    if _libc.mlock2(address, nbytes, _MLOCK_ONFAULT) == 0:
        return True
    error = _error()
    if error.errno in {errno.EPERM, errno.ENOMEM, errno.EAGAIN, errno.ENOSYS}:
        return False
    raise error


def bytes_in_memory(address: int, nbytes: int) -> int:
    """Return how many of the `nbytes` mapped at `address` are in memory, counted in pages."""
    found = np.zeros(-(-nbytes // PAGE), dtype=np.uint8)
    if _libc.mincore(address, nbytes, found.ctypes.data):
        raise _error()
    return min(int((found & 1).sum()) * PAGE, nbytes)


@cache
def _try_populating() -> None:
    """Raise OSError if this system cannot populate a mapping: this must be known before a step waits for pieces."""
    page = np.frombuffer(mmap.mmap(-1, PAGE), dtype=np.uint8)
    _madvise(page.ctypes.data, PAGE, _MADV_POPULATE_READ)


@contextmanager
def _where_populated() -> Iterator[None]:
    """Suppress the error of a system that cannot populate mappings."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:  # the error of Linux before 5.14
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
