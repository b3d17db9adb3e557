"""Where runs of characters end, in text that grows: pure."""

import re
from typing import Protocol


class Pattern(Protocol):
    """A compiled one of `re`, as far as it is asked here."""

    def search(self, text: str, at: int, /) -> re.Match[str] | None:
        """What it finds first, from there on."""


class Runs:
    """Of one text. What was passed is not looked at again, however often more of the text comes."""

    def __init__(self) -> None:
        self._passed: dict[int, int] = {}  # by where a run begins, as far as it was seen

    def end(self, other: Pattern, text: str, at: int) -> int:
        """Where the run that begins in there ends; `other` finds a character that is not of it.

        The text is the same one as before, with more after it.
        """
        found = other.search(text, self._passed.get(at, at))
        self._passed[at] = end = found.start() if found else len(text)
        return end
