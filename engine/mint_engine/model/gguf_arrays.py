"""gguf's own reader of files' heads, which takes a vocabulary and its merges in a fraction of the time.

gguf looks at each word, and each number, through a mapped file's own indexing, several times: a vocabulary of 151,000
words takes it ten seconds, and transformers has it read each time that it asks for anything of a file.
"""

from typing import Any

import gguf
import numpy as np

_HEAD_BYTES = 12  # of an array: of what it is (uint32), and how many there are (uint64)


class ArrayReader(gguf.GGUFReader):
    """Finds all that gguf's own does."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        """The bytes of a field, where its parts lie, which of them are its values, and of what types they are."""
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        first, number = orig_offs + _HEAD_BYTES, int(count[0])
        if kind[0] == gguf.GGUFValueType.STRING and number:
            parts, end = _strings(np.asarray(self.data), first, number)
            values = range(3, len(parts) + 2, 2)
        elif (numpy_type := self.gguf_scalar_to_np.get(kind[0])) and number:
            parts, end = _numbers(np.asarray(self.data), first, number, np.dtype(numpy_type))
            values = range(2, len(parts) + 2)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(int(kind[0]))]
        return end - orig_offs, [kind, count, *parts], list(values), types


def _strings(data: np.ndarray[Any, Any], at: int, number: int) -> tuple[list[Any], int]:
    """The length and the bytes of each, and where they end. Raises IndexError or ValueError where a file does."""
    parts: list[Any] = []
    for _ in range(number):
        length = data[at : at + 8].view(np.uint64)
        first, at = at + 8, at + 8 + int(length[0])
        parts += (length, data[first:at])
    return parts, at


def _numbers(data: np.ndarray[Any, Any], at: int, number: int, kind: np.dtype[Any]) -> tuple[list[Any], int]:
    """Each for itself, and where they end. Raises ValueError where a file does."""
    end = at + number * kind.itemsize
    return list(data[at:end].view(kind).reshape(number, 1)), end
