"""Parsing a chat's completions: the thought before an answer, and the function calls in it. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from mint_contracts.sampling_pb2 import Started
from mint_gateway.http.calls import Call, Reader, Reading
from mint_gateway.http.thoughts import Separator, Thought
from mint_gateway.http.tools import Tools

Part = str | Call | Thought


class Parser:
    """Parses one completion. Calls are looked for only outside its thought."""

    def __init__(self, separator: Separator | None, reader: Reader | None, *, shows: bool) -> None:
        """`shows` is whether the thought is returned."""
        self._separator, self._reader, self._shows = separator, reader, shows
        self._counted = 0  # tokens until it was known that no more of a thought follows

    @property
    def may_think(self) -> bool:
        """Whether more of a thought may follow."""
        return self._separator is not None and not self._separator.is_over

    @property
    def thought(self) -> bool:
        """Whether it had a thought, shown or not."""
        return self._separator is not None and self._separator.found

    @property
    def thought_tokens(self) -> int:
        """How many of its tokens were the thought's, with its markers."""
        return self._counted if self.thought else 0

    def push(self, text: str, tokens: int) -> list[Part]:
        """Parse more text, of so many tokens, and return what has become certain, in order."""
        self._counted += tokens if self.may_think else 0
        return self._read(self._separator.push(text) if self._separator is not None else [text])

    def finish(self) -> list[Part]:
        """Return the rest; no more text follows."""
        rest = self._read(self._separator.finish()) if self._separator is not None else []
        return rest + (list(self._reader.finish()) if self._reader is not None else [])

    def whole(self, pieces: Sequence[tuple[str, int]]) -> list[Part]:
        """Return all parts of a completion from its pieces of text, each with its number of tokens."""
        found: list[Part] = []
        rest = iter(pieces)
        for text, tokens in rest:
            found += self.push(text, tokens)
            if not self.may_think:
                break
        return found + self.push("".join(text for text, _ in rest), 0) + self.finish()

    def _read(self, parts: Iterable[str | Thought]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if isinstance(part, Thought):
                found += [part] if self._shows else []
            elif self._reader is not None:
                found += self._reader.push(part)
            else:
                found += [part] if part else []
        return found


class Parsing(msgspec.Struct, frozen=True):
    """How the completions of one request are parsed."""

    calls: Reading | None = None
    thought: "Started.Thought.ValueType" = Started.NO_THOUGHT
    shows: bool = True  # whether the thought is returned

    def parser(self) -> Parser:
        """Return a parser for one completion."""
        separator = Separator(begun=self.thought == Started.BEGUN) if self.thought else None
        return Parser(separator, self.calls.reader() if self.calls is not None else None, shows=self.shows)


def parsing(tools: Tools, started: Started, *, shows: bool) -> Parsing | None:
    """Return how to parse the completions of a request that has started; None if their text is all there is.

    Engines of earlier versions do not say whether there may be a thought, and then its text is part of the answer.
    """
    calls = tools.reading(started.calls)
    return Parsing(calls, started.thought, shows=shows) if calls is not None or started.thought else None
