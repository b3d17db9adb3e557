"""A web server's file, read once from start to end: in blocks, or as it comes where no parts of it are sent."""

from collections.abc import Callable
from typing import BinaryIO

PIECE_BYTES = 1 << 20


class WebStream:
    """Of a server without parts what has come in the first block comes a second time, and is passed over."""

    def __init__(self, open_by: Callable[[int], BinaryIO], block_bytes: int) -> None:
        """`open_by` opens the file by blocks of so many bytes, or, by none, at one go."""
        self._open_by = open_by
        self._file = open_by(block_bytes)
        self._at, self._whole = 0, False

    def read(self, count: int) -> bytes:
        """Some bytes, at most `count`; none at the end."""
        try:
            part = self._file.read(count)
        except ValueError:  # all that fsspec tells of it
            if self._whole:
                raise
            self._begin_anew()
            part = self._file.read(count)
        self._at += len(part)
        return part

    def readinto(self, view: memoryview) -> int:
        """The same; how many there were."""
        part = self.read(len(view))
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Read no more of it."""
        self._file.close()

    def _begin_anew(self) -> None:
        self._file.close()
        self._file, self._whole = self._open_by(0), True
        left = self._at
        while left and (part := self._file.read(min(left, PIECE_BYTES))):
            left -= len(part)
