"""The head of a GGUF file: configuration, tokenizer and tensor descriptions, up to the tensors' data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from typing import BinaryIO

from mint_contracts.errors import CorruptFile
from mint_engine.sources.copying import CHUNK_BYTES

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # earlier versions and other byte orders are not read
_MOST_BYTES = 256 << 20  # a vocabulary of a quarter million tokens, with its merges, has about 15 MB
_MOST_VALUES = 1 << 21  # of all arrays together; readers make an object of each
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # sizes by value type
_STRING, _ARRAY = 8, 9


def read_head(file: BinaryIO, subject: str) -> bytes:
    """Read the head of a GGUF file from its start; the result may have some bytes more.

    For a file that is not GGUF, or of an unknown version, return the bytes that show it. Raises CorruptFile, naming
    `subject`, for a head that does not end.
    """
    head = _Head(file, subject)
    if head.bytes(len(MAGIC)) == MAGIC and head.number("<I") in _VERSIONS:
        tensors, values = head.number("<Q"), head.number("<Q")
        for _ in range(values):
            head.string()
            head.value(head.number("<I"))
        for _ in range(tensors):
            head.string()
            head.skip(head.number("<I") * 8)  # its shape
            head.skip(4 + 8)  # its type and offset
    return bytes(head.read)


class _Head:
    """The bytes of a head read so far, and the position within them."""

    def __init__(self, file: BinaryIO, subject: str) -> None:
        self._file, self._subject, self._at, self._values = file, subject, 0, 0
        self.read = bytearray()

    def skip(self, count: int) -> None:
        self._at += count
        if self._at > _MOST_BYTES:
            raise CorruptFile(self._subject, f"has a head of more than {_MOST_BYTES} bytes, which no GGUF file has")
        while len(self.read) < self._at:
            more = self._file.read(CHUNK_BYTES)
            if not more:
                raise CorruptFile(self._subject, f"ends within its head, after {len(self.read)} bytes")
            self.read += more

    def bytes(self, count: int) -> bytes:
        self.skip(count)
        return bytes(self.read[self._at - count : self._at])

    def number(self, form: str) -> int:
        count: int = struct.unpack(form, self.bytes(struct.calcsize(form)))[0]
        return count

    def string(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int) -> None:
        of, count = (self.number("<I"), self.number("<Q")) if kind == _ARRAY else (kind, 1)
        if of in _BYTES:
            self.skip(count * _BYTES[of])
            self._count(count)
        elif of == _STRING:
            self._count(count)
            for _ in range(count):
                self.string()
        else:  # or an array of arrays, which nobody writes
            raise CorruptFile(self._subject, f"has a value of the unknown kind {of} in its head")

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > _MOST_VALUES:
            message = f"has more than {_MOST_VALUES:,} values in its head, which no GGUF file has"
            raise CorruptFile(self._subject, message)
