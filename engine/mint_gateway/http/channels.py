"""Separating the messages in channels of gpt-oss' format, harmony, as an answer's text arrives: pure.

A message is a header, `<|message|>` and a text, up to another marker, mostly `<|end|>`. The header has the channel
and, as `to=functions.NAME`, whom the message is for. What is for a function is a call, what is in `analysis` the
thought, and all else the answer. So is text in no message, as an adapter may answer: only headers are dropped, and
what may yet become one is held back. Messages of one kind are a line apart.

Neither the thought, the answer nor the calls depend on how the text is cut into pieces.
"""

import re
from collections import deque
from collections.abc import Collection, Sequence

from mint_gateway.http.calls import Call, Single
from mint_gateway.http.thoughts import Thought

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_MARKERS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, "<|end|>", "<|call|>", "<|return|>")

# The words of a header after each of its markers, or before the first, beside `to=`.
_WORDS = {
    "": (),
    _START: ("assistant",),
    _CHANNEL: ("analysis", "commentary", "final", "json", "code"),
    _CONSTRAIN: ("json", "code"),
}
_FOR = "to="
_LONGEST = 256  # characters between two markers of a header
_SPACE = re.compile(r"\s+")
_RECIPIENT = re.compile(rf"(?:^|\s){_FOR}(?:functions\.)?(\S+)")


class Channels:
    """Separates the text of one completion. Both methods return what has become certain, in order."""

    def __init__(self, names: Collection[str], *, once: bool = False) -> None:
        """`names` are the functions' names: a call of another is part of the answer.

        `once` is whether to drop all that follows a call.
        """
        self._names, self._once = names, once
        self._held, self._at = "", 0  # text not read yet, and how many characters come before it
        self._markers = deque[int]()  # where markers begin that were not read yet
        self._header: list[tuple[str, str]] | None = [("", "")]  # markers, each with its text; None within a message
        self._call: tuple[str, list[str]] | None = None  # the message's function, and its text
        self._thinks = False  # whether the message is a thought
        self._begun = False  # whether some of it was told
        self._over = False  # whether the rest is dropped
        self._told = set[bool]()  # whether the answer or, as True, the thought has any text
        self._unsure = 0  # tokens that may belong to a thought's header
        self.is_over = False  # a thought may always follow
        self.tokens = 0  # of thoughts, with their markers
        self.found = False  # whether there is a thought

    def push(self, text: str, tokens: int = 0, markers: Sequence[int] = ()) -> list[str | Thought | Call]:
        """Take more text of so many tokens, in which `markers` begin: in characters from the completion's begin."""
        self._held += text
        self._markers.extend(markers)
        thought = self._thinks
        self._unsure += tokens if thought or self._header is not None else 0
        found = self._read()
        if thought or self._thinks or any(isinstance(part, Thought) for part in found):
            self.tokens += self._unsure
            self._unsure = 0
        elif self._header is None:
            self._unsure = 0
        return found

    def finish(self, *, cut: bool = False) -> list[str | Thought | Call]:
        """Return the rest; no more text follows. Markers and calls without arguments that were cut are dropped."""
        return self._end(cut=cut)

    def _read(self) -> list[str | Thought | Call]:
        found: list[str | Thought | Call] = []
        while True:
            size = self._markers[0] - self._at if self._markers else len(self._held)
            found += self._take(self._skip(size))
            marker = next((each for each in _MARKERS if self._markers and self._held.startswith(each)), None)
            if marker is None:
                return found
            self._markers.popleft()
            self._skip(len(marker))
            found += self._mark(marker)

    def _skip(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        self._at += len(text)
        return text

    def _mark(self, marker: str) -> list[str | Thought | Call]:
        if marker == _MESSAGE:
            if self._header is not None:
                self._begin(self._header)
            return []
        if marker in (_CHANNEL, _CONSTRAIN) and self._header is not None:
            self._header.append((marker, ""))
            return []
        found = self._end()
        self._header = [(marker if marker in _WORDS else "", "")]
        return found

    def _take(self, text: str) -> list[str | Thought | Call]:
        """Return what is certain of text between two markers."""
        if self._header is None or not text:
            return self._tell(text)
        marker, before = self._header[-1]
        self._header[-1] = marker, before + text
        if _may_be(marker, before + text):
            return []
        self._begin(self._header)
        return self._tell(before + text)

    def _begin(self, header: Sequence[tuple[str, str]]) -> None:
        """Begin a message with that header."""
        to = next(filter(None, (_RECIPIENT.search(text) for _, text in header)), None)
        channel = next((text for marker, text in header if marker == _CHANNEL), "").lstrip()
        self._call = (to[1], []) if to and to[1] in self._names else None
        self._thinks = self._call is None and channel.startswith("analysis")
        self._header, self._begun = None, False
        self.found = self.found or self._thinks

    def _tell(self, text: str) -> list[str | Thought | Call]:
        """Return text of the message, unless it is for a function."""
        if not text or self._over:
            return []
        if self._call is not None:
            self._call[1].append(text)
            return []
        text = text if self._begun or self._thinks not in self._told else f"\n{text}"
        self._begun = True
        self._told.add(self._thinks)
        return [Thought(text) if self._thinks else text]

    def _end(self, *, cut: bool = False) -> list[str | Thought | Call]:
        """End the message, or what might have become a header: without any marker it was text."""
        header, call = self._header, self._call
        self._header, self._call, self._thinks, self._begun = None, None, False, False
        if call is None or self._over:
            return self._tell(header[0][1]) if header and not header[0][0] and len(header) == 1 else []
        name, texts = call
        single = Single(name)
        single.push("".join(texts).strip() or ("" if cut else "{}"))  # nothing, for a function without arguments
        found: list[str | Thought | Call] = []
        for part in single.finish():
            self._over = self._once and isinstance(part, Call)
            found += [part] if isinstance(part, Call) else self._tell(part)
        return found


def _may_be(marker: str, text: str) -> bool:
    """Return whether a header's text after that marker may begin so."""
    *words, last = _SPACE.split(text)
    known = _WORDS[marker]
    return (
        len(text) <= _LONGEST
        and all(not word or word in known or word.startswith(_FOR) for word in words)
        and (last.startswith(_FOR) or any(word.startswith(last) for word in (*known, _FOR)))
    )
