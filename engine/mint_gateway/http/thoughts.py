"""Separating a model's thought from its answer as the text arrives: pure.

A thought is `<think>`, text and `</think>` at the beginning of a completion; its prompt may have the first of these.
Neither the thought nor the answer depends on how the text is cut into pieces. White space around the thought is
dropped. The thought ends with the first `</think>`, and whatever else looks like one later stays part of the answer.
"""

from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from mint_gateway.http.tags import MOST_SPACE, end_before, may_begin

_BEGIN, _END = "<think>", "</think>"


class Thought(msgspec.Struct, frozen=True):
    """A piece of the thought."""

    text: str


class _State(Enum):
    """What the text that comes next belongs to."""

    UNKNOWN = auto()
    THOUGHT = auto()
    BETWEEN = auto()  # white space before the answer
    ANSWER = auto()


class Separator:
    """Separates the text of one completion. Both methods return what has become certain, in order."""

    def __init__(self, *, begun: bool) -> None:
        """`begun` is whether the prompt has begun the thought."""
        self._state = _State.THOUGHT if begun else _State.UNKNOWN
        self._held = ""
        self._shown = False  # whether some of the thought was returned
        self._counted = 0  # tokens until it was known that no more of a thought follows
        self.found = begun  # whether there is a thought

    @property
    def is_over(self) -> bool:
        """Whether no thought can come any more, nor more of it."""
        return self._state in (_State.BETWEEN, _State.ANSWER)

    @property
    def tokens(self) -> int:
        """How many tokens were the thought's, with its markers."""
        return self._counted if self.found else 0

    def push(self, text: str, tokens: int = 0, markers: Sequence[int] = ()) -> list[str | Thought]:
        """Take more text of so many tokens; its markers are found by their text."""
        self._held += text
        self._counted += 0 if self.is_over else tokens
        found: list[str | Thought] = []
        if self._state is _State.UNKNOWN:
            self._begin()
        if self._state is _State.THOUGHT:
            found += self._think()
        if self._state is _State.BETWEEN:
            self._held = self._held.lstrip()
            self._state = _State.ANSWER if self._held else _State.BETWEEN
        if self._state is _State.ANSWER and self._held:
            found.append(self._held)
            self._held = ""
        return found

    def finish(self, *, cut: bool = False) -> list[str | Thought]:
        """Return the rest; no more text follows. What was cut off is text."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Thought(held) if self._state is _State.THOUGHT else held]

    def _begin(self) -> None:
        """Find out whether there is a thought, if the text held is enough for that."""
        begun = self._held.lstrip()
        spaced = len(self._held) - len(begun) > MOST_SPACE
        if begun.startswith(_BEGIN) and not spaced:
            self._state, self._held, self.found = _State.THOUGHT, begun[len(_BEGIN) :], True
        elif spaced or not _BEGIN.startswith(begun):
            self._state = _State.ANSWER

    def _think(self) -> list[str | Thought]:
        """Return what is certain of the thought, without the white space around it."""
        if not self._shown:
            self._held = self._held.lstrip()
        end = self._held.find(_END)
        if end < 0:
            end = may_begin(_END, self._held)
            text, self._held = self._held[:end], self._held[end:]
        else:
            text, self._held = self._held[: end_before(self._held, end)], self._held[end + len(_END) :]
            self._state = _State.BETWEEN
        self._shown = self._shown or bool(text)
        return [Thought(text)] if text else []
