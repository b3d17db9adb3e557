"""From tokens to text, piece by piece: never half a character, never part of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

_INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are no character yet
_CONTEXT = 6  # tokens of the prompt that the first ones are decoded after: some tokenizers strip a leading space


class TextStream:
    """One completion's text. `decode` turns token ids into text and skips special tokens."""

    def __init__(self, decode: Decode, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        # The tokens that the next ones are decoded after, and those of them whose text is already out.
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._window)
        self._held = ""  # complete characters that may begin a stop string

    def push(self, token: int) -> tuple[str, bool]:
        """Take one more token; returns the text that became final, and whether a stop string ended it."""
        self._window.append(token)
        fresh = self._fresh()
        if fresh.endswith(_INCOMPLETE):
            return "", False
        self._window, self._known = self._window[self._known :], len(self._window) - self._known
        return self._release(fresh)

    def finish(self) -> str:
        """The rest, when no more tokens come. Bytes that never became a character are dropped."""
        text, _ = self._release(self._fresh().rstrip(_INCOMPLETE))
        text += self._held
        self._held = ""
        return text

    def _fresh(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._known])) :]

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
