"""A web server's file, read once from start to end: in blocks, or in one response if the server sends no parts."""

from collections.abc import Callable
from typing import BinaryIO

PIECE_BYTES = 1 << 20


class WebStream:
    """The file as a stream. If the server sends no parts, it is opened again, and what was read before is skipped."""

    def __init__(self, open_by: Callable[[int], BinaryIO], block_bytes: int) -> None:
        """`open_by` opens the file to be read in blocks of that many bytes; with 0, in one response."""
        self._open_by = open_by
        self._file = open_by(block_bytes)
        self._at, self._whole = 0, False

    def read(self, count: int) -> bytes:
        """Read some bytes, at most `count`; none at the end."""
        try:
            part = self._file.read(count)
        except ValueError:  # fsspec's only sign that the server sends no parts
            if self._whole:
                raise
            self._begin_anew()
            part = self._file.read(count)
        self._at += len(part)
        return part

    def readinto(self, view: memoryview) -> int:
        """Read some bytes into a buffer; return their number."""
        part = self.read(len(view))
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _begin_anew(self) -> None:
        self._file.close()
        self._file, self._whole = self._open_by(0), True
        left = self._at
        while left and (part := self._file.read(min(left, PIECE_BYTES))):
            left -= len(part)
