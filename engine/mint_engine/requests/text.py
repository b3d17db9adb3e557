"""From tokens to text, piece by piece: never half a character, never part of a stop string."""

from collections.abc import Sequence
from functools import lru_cache

from mint_engine.requests.pieces import ByteDecoder, WindowDecoder

Decoder = ByteDecoder | WindowDecoder


class TextStream:
    """One completion's text."""

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(map(_Sought, stop))
        self._held = ""  # complete characters that may begin a stop string

    @property
    def begins(self) -> int:
        """Characters, told or held back, before the one that the newest token begins or goes on with."""
        return self._decoder.begins

    def push(self, token: int) -> tuple[str, bool]:
        """Take one more token; returns the text that became final, and whether a stop string ended it."""
        fresh = self._decoder.push(token)
        return self._release(fresh) if self._stop else (fresh, False)

    def skip(self) -> None:
        """One more token has come, which ends the sequence: it is none of the text."""
        self._decoder.skip()

    def finish(self) -> str:
        """The rest, when no more tokens come. Bytes that never became a character are dropped."""
        text, _ = self._release(self._decoder.finish())
        text += self._held
        self._held = ""
        return text

    def _release(self, fresh: str) -> tuple[str, bool]:
        text, before = self._held + fresh, len(self._held)
        found = [before + end - len(each.text) for each in self._stop if (end := each.look_in(fresh)) is not None]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((each.begun for each in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


class _Sought:
    """A string that is looked for in a text as it comes, each letter once (Knuth, Morris and Pratt, 1977).

    All requests wait for it: looked for in all that is held back, sixteen long ones took half a millisecond a token.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun = 0  # so many of its first letters are the last of what came
        self._shorter = _beginnings(text)

    def look_in(self, fresh: str) -> int | None:
        """How much of `fresh` came until it was there; None: it is not. Nothing is looked for after it was."""
        text, shorter, begun = self.text, self._shorter, self.begun
        for at, letter in enumerate(fresh):
            while begun and text[begun] != letter:
                begun = shorter[begun - 1]
            begun += text[begun] == letter
            if begun == len(text):
                return at + 1
        self.begun = begun
        return None


@lru_cache(maxsize=256)
def _beginnings(text: str) -> tuple[int, ...]:
    """For each beginning of a string, how many of its own first letters it ends with, itself aside."""
    found, begun = [0], 0
    for letter in text[1:]:
        while begun and text[begun] != letter:
            begun = found[begun - 1]
        begun += text[begun] == letter
        found.append(begun)
    return tuple(found)
