"""From tokens to text, piece by piece: never half a character, never part of a stop string."""

from collections.abc import Sequence

from mint_engine.requests.pieces import ByteDecoder, WindowDecoder

Decoder = ByteDecoder | WindowDecoder


class TextStream:
    """One completion's text."""

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""  # complete characters that may begin a stop string

    @property
    def begins(self) -> int:
        """Characters, told or held back, before the one that the newest token begins or goes on with."""
        return self._decoder.begins

    def push(self, token: int) -> tuple[str, bool]:
        """Take one more token; returns the text that became final, and whether a stop string ended it."""
        fresh = self._decoder.push(token)
        return self._release(fresh) if self._stop else (fresh, False)

    def finish(self) -> str:
        """The rest, when no more tokens come. Bytes that never became a character are dropped."""
        text, _ = self._release(self._decoder.finish())
        text += self._held
        self._held = ""
        return text

    def _release(self, fresh: str) -> tuple[str, bool]:
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
