"""Writing much to a file: the disk is at each piece while the next is copied, so that fsync waits for little."""

import ctypes
import os

PIECE_BYTES = 32 << 20

_BEGIN = 2  # SYNC_FILE_RANGE_WRITE of Linux' fs.h; nothing is waited for
_libc = ctypes.CDLL(None)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]


def write_along(descriptor: int, content: memoryview) -> None:
    """Write all of it from where `descriptor` is. It is there for good after an fsync, as of any other way to write.

    What the disk refuses meanwhile fsync tells, and a file system that can not begin so begins then.
    """
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    while content:
        count = os.write(descriptor, content[:PIECE_BYTES])
        _libc.sync_file_range(descriptor, start, count, _BEGIN)
        start, content = start + count, content[count:]
