"""A data set's examples in memory, kept as lines; a line is decoded again each time that its example is taken.

As objects, with all of their texts, they would take several times the file's size, for some files ten times.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from mint_contracts.training import Dataset
from mint_engine.examples.example import Example, read_line


class Examples(Sequence[Example]):
    """An immutable sequence of examples, made of lines that were read without error. A slice copies its lines."""

    def __init__(self, dataset: Dataset, lines: Iterable[bytes]) -> None:
        self._dataset, self._content, self._ends = dataset, bytearray(), array("Q")
        for line in lines:
            self._content += line
            self._ends.append(len(self._content))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> "Examples": ...

    def __getitem__(self, at: int | slice) -> "Example | Examples":
        places = range(len(self))
        if isinstance(at, slice):
            return Examples(self._dataset, map(self._line, places[at]))
        return read_line(self._line(places[at]), self._dataset, "example")

    def _line(self, place: int) -> bytes:
        first = self._ends[place - 1] if place else 0
        return bytes(self._content[first : self._ends[place]])
