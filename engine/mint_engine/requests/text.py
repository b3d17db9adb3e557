"""Turns tokens into text incrementally: never emits half a character or part of a stop string."""

from collections.abc import Sequence
from functools import lru_cache

from mint_engine.requests.pieces import ByteDecoder, WindowDecoder

Decoder = ByteDecoder | WindowDecoder


class TextStream:
    """The text of one completion."""

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop: list[_Sought] = []
        self.seek(stop)
        self._held = ""  # complete characters that may begin a stop string

    @property
    def begins(self) -> int:
        """Number of characters, emitted or held back, before the one that the newest token begins or continues."""
        return self._decoder.begins

    def seek(self, stop: Sequence[str]) -> None:
        """Add stop strings that end the text from here on."""
        self._stop += map(_Sought, stop)

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token; return the text that became final, and whether a stop string ended it."""
        fresh = self._decoder.push(token)
        return self._release(fresh) if self._stop else (fresh, False)

    def mark(self, token: int) -> str:
        """Add a token whose text belongs to no stop string; return the text that became final."""
        text, self._held = self._held + self._decoder.push(token), ""
        for each in self._stop:
            each.begun = 0
        return text

    def skip(self) -> None:
        """Note a token that ends the sequence and is not part of the text."""
        self._decoder.skip()

    def finish(self) -> str:
        """Return the rest of the text after the last token. Bytes that never became a character are dropped."""
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
    """Searches a text for a string as it arrives, looking at each character once (Knuth, Morris and Pratt, 1977).

    All requests wait for it: searching all held-back text for sixteen long strings took half a millisecond a token.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun = 0  # length of the string's longest prefix that ends the text so far
        self._shorter = _beginnings(text)

    def look_in(self, fresh: str) -> int | None:
        """Return the end of the string in `fresh`, or None if it is not complete. Do not call again once found."""
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
    """Return, for each prefix of a string, the length of its longest proper prefix that is also its suffix."""
    found, begun = [0], 0
    for letter in text[1:]:
        while begun and text[begun] != letter:
            begun = found[begun - 1]
        begun += text[begun] == letter
        found.append(begun)
    return tuple(found)
