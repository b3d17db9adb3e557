"""Finding the ends of runs of characters in growing text: pure."""

import re
from typing import Protocol


class Pattern(Protocol):
    """The part of a compiled `re` pattern that is used here."""

    def search(self, text: str, at: int, /) -> re.Match[str] | None:
        """Return the first match from `at` on."""


class Runs:
    """The runs of one text. Characters already scanned are not scanned again as more text comes."""

    def __init__(self) -> None:
        self._passed: dict[int, int] = {}  # by a run's start, how far it was scanned

    def end(self, other: Pattern, text: str, at: int) -> int:
        """Return the end of the run that begins at `at`; `other` matches a character outside the run.

        The text must be the same as before, possibly with more after it.
        """
        found = other.search(text, self._passed.get(at, at))
        self._passed[at] = end = found.start() if found else len(text)
        return end
