"""Large writes to a file: the disk writes each piece while the next is copied, so that fsync waits for little."""

import ctypes
import os

PIECE_BYTES = 32 << 20

_BEGIN = 2  # SYNC_FILE_RANGE_WRITE of Linux's fs.h: begin to write back, without waiting
_libc = ctypes.CDLL(None)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]


def write_along(descriptor: int, content: memoryview) -> None:
    """Write `content` at the descriptor's current offset. As after any write, only an fsync makes it durable.

    The early write-back is only a hint: fsync reports its errors, and does the work where it is not supported.
    """
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    while content:
        count = os.write(descriptor, content[:PIECE_BYTES])
        _libc.sync_file_range(descriptor, start, count, _BEGIN)
        start, content = start + count, content[count:]
