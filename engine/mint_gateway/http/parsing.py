"""Parsing a chat's completions: the thought before an answer, and the function calls in it. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from mint_contracts.sampling_pb2 import Chunk, Started
from mint_gateway.http.calls import Call, Reader, Reading
from mint_gateway.http.channels import Channels
from mint_gateway.http.thoughts import Separator, Thought
from mint_gateway.http.tools import Tools

Part = str | Call | Thought


class Separates(Protocol):
    """Separates the thought of one completion, in one of the formats."""

    @property
    def is_over(self) -> bool:
        """Whether no thought can come any more, nor more of it."""

    @property
    def found(self) -> bool:
        """Whether there is a thought."""

    @property
    def tokens(self) -> int:
        """How many tokens were the thought's, with its markers."""

    def push(self, text: str, tokens: int, markers: Sequence[int]) -> Sequence[Part]:
        """Take more text of so many tokens; return what has become certain, in order."""

    def finish(self, *, cut: bool) -> Sequence[Part]:
        """Return the rest; no more text follows. `cut` is whether the completion would have gone on."""


class Piece(NamedTuple):
    """A piece of a completion: see Chunk."""

    text: str
    tokens: int = 0
    markers: Sequence[int] = ()


def piece_of(chunk: Chunk) -> Piece:
    """Return what a chunk has of the completion; it does not keep the chunk, which takes ten times as much memory."""
    return Piece(chunk.text, len(chunk.token_ids), tuple(chunk.markers))


class Parser:
    """Parses one completion. Calls are looked for only outside its thought."""

    def __init__(self, separator: Separates | None, reader: Reader, *, shows: bool) -> None:
        """`shows` is whether the thought is returned."""
        self._separator, self._reader, self._shows = separator, reader, shows

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
        return self._separator.tokens if self._separator is not None else 0

    def push(self, piece: Piece) -> list[Part]:
        """Parse more text, and return what has become certain, in order."""
        return self._read(self._separator.push(*piece) if self._separator is not None else [piece.text])

    def finish(self, *, cut: bool = False) -> list[Part]:
        """Return the rest; no more text follows. `cut` is whether the completion would have gone on."""
        rest = self._read(self._separator.finish(cut=cut)) if self._separator is not None else []
        return [*rest, *self._reader.finish()]

    def whole(self, pieces: Sequence[Piece], *, cut: bool = False) -> list[Part]:
        """Return all parts of a completion from its pieces."""
        found: list[Part] = []
        rest = iter(pieces)
        for piece in rest:
            found += self.push(piece)
            if not self.may_think:
                break
        return found + self.push(Piece("".join(piece.text for piece in rest))) + self.finish(cut=cut)

    def _read(self, parts: Iterable[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if isinstance(part, Thought):
                found += [part] if self._shows else []
            elif isinstance(part, Call):  # it has no text that a reader could look into
                found.append(part)
            else:
                found += self._reader.push(part)
        return found


class Parsing(msgspec.Struct, frozen=True):
    """How the completions of one request are parsed."""

    calls: Reading | None = None
    thought: "Started.Thought.ValueType" = Started.NO_THOUGHT
    shows: bool = True  # whether the thought is returned

    def parser(self) -> Parser:
        """Return a parser for one completion."""
        calls = self.calls or Reading()
        separator: Separates | None = None
        if self.thought == Started.CHANNELS:
            separator = Channels(calls.names, once=calls.once)
        elif self.thought:
            separator = Separator(begun=self.thought == Started.BEGUN)
        return Parser(separator, calls.reader(), shows=self.shows)


def parsing(tools: Tools, written: str, started: Started, *, shows: bool) -> Parsing | None:
    """Return how to parse the completions of a request that has started; None if their text is all there is.

    `written` are its functions as in the request: what their schemas take in Python is not kept beside it.

    Engines of earlier versions do not say whether there may be a thought, and then its text is part of the answer.
    """
    calls = tools.reading(started.calls, written)
    return Parsing(calls, started.thought, shows=shows) if calls is not None or started.thought else None
