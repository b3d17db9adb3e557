"""The head of a GGUF file: it tells of configuration, tokenizer and tensors, and ends before what these hold.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from typing import BinaryIO

from mint_contracts.errors import CorruptFile
from mint_engine.sources.copying import CHUNK_BYTES

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # of those before, and of other byte orders, nothing is read
_MOST_BYTES = 256 << 20  # vocabularies of a quarter million tokens, with their merges, have some 15 MB
_MOST_VALUES = 1 << 21  # of all arrays; whoever reads them makes an object of each
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by the kind of a value
_STRING, _ARRAY = 8, 9


def read_head(file: BinaryIO, subject: str) -> bytes:
    """The head of a GGUF file that is read from its start, and maybe some bytes more.

    What is none, or of a version that is not known, is given back as far as that shows. Raises CorruptFile, naming
    the file so, for a head that does not end.
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
            head.skip(4 + 8)  # its type, and where it lies
    return bytes(head.read)


class _Head:
    """As much of it as was read, and how far it is gone through."""

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
        else:  # an array of arrays too, which nobody writes
            raise CorruptFile(self._subject, f"has a value of the unknown kind {of} in its head")

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > _MOST_VALUES:
            message = f"has more than {_MOST_VALUES:,} values in its head, which no GGUF file has"
            raise CorruptFile(self._subject, message)
