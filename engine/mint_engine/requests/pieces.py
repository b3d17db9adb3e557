"""From tokens to characters, one token at a time.

A byte-level tokenizer (GPT-2's kind: Llama 3, Qwen, SmolLM and others) gives each token its bytes, which only have to
be decoded as they come. For any other kind the tokenizer itself decodes a window of the newest tokens.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Decode = Callable[[list[int]], str]

INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are no character (yet)
_CONTEXT = 6  # tokens of the prompt that the first ones are decoded after: some tokenizers strip a leading space
_LONGEST_CHARACTER = 4  # bytes in UTF-8, and so tokens
_PROBED = 512  # tokens on which the two ways are compared


class Pieces(dict[int, bytes]):
    """The bytes of each token of a byte-level vocabulary, worked out when first asked for. b"": shows nothing."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._name = backend.id_to_token
        self._skipped = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}

    def __missing__(self, token: int) -> bytes:
        name = None if token in self._skipped else self._name(token)
        try:
            piece = bytes(_BYTE_OF[letter] for letter in name or "")
        except KeyError:  # an added token is written as it is
            piece = (name or "").encode()
        self[token] = piece
        return piece


class ByteDecoder:
    """One completion's bytes -> characters."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self.begins = 0  # characters before the one that the newest token begins or goes on with
        self._whole = 0  # characters
        self._open = b""  # the beginning of a character
        self._doubtful = ""  # INCOMPLETE at the end: shown only if more follows

    def push(self, token: int) -> str:
        """The characters that became complete with one more token."""
        piece = self._pieces[token]
        self.begins = self._whole + _broken(self._open, piece)
        data = self._open + piece
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._whole, self._open = self._whole + len(text), data[used:]
        if self._doubtful or text.endswith(INCOMPLETE):
            text = self._doubtful + text
            sound = text.rstrip(INCOMPLETE)
            self._doubtful = text[len(sound) :]
            return sound
        return text

    def skip(self) -> None:
        """One more token has come, which is not of the text."""
        self.begins = self._whole

    def finish(self) -> str:
        """Nothing: what is left never became a character."""
        return ""


class WindowDecoder:
    """One completion, decoded by the tokenizer: the newest tokens after those whose text is already out."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._window)  # tokens of the window whose text is settled
        self.begins = 0  # as ByteDecoder's; within bytes that are no character (yet), where these begin
        self._settled = 0  # characters
        self._doubtful = ""  # INCOMPLETE at the settled text's end: shown only if more follows

    def push(self, token: int) -> str:
        """The characters that became complete with one more token."""
        end = len(self._window)
        before = self._fresh(end) if end > self._known else ""
        self._window.append(token)
        end += 1
        fresh = self._fresh(end)
        broken = fresh.startswith(before) and not fresh.endswith(INCOMPLETE)
        self.begins = self._settled + len(before if broken else before.rstrip(INCOMPLETE))
        if fresh.endswith(INCOMPLETE):
            if end - self._known <= _LONGEST_CHARACTER:
                return ""
            end = self._newest_character()
            fresh = self._fresh(end)
        return self._settle(end, fresh)

    def skip(self) -> None:
        """One more token has come, which is not of the text."""
        self.begins = self._settled + len(self._fresh(len(self._window)).rstrip(INCOMPLETE))

    def finish(self) -> str:
        """What was held back because bytes that never became a character came after it."""
        end = len(self._window)
        return self._settle(end, self._fresh(end))

    def _fresh(self, end: int) -> str:
        """The text of the window's tokens from the settled ones to `end`."""
        return self._decode(self._window[:end])[len(self._decode(self._window[: self._known])) :]

    def _settle(self, end: int, fresh: str) -> str:
        """What may be shown once nothing changes the fresh text of the tokens before `end`."""
        text = self._doubtful + fresh
        self._window, self._known = self._window[self._known :], end - self._known
        self._settled += len(fresh)
        sound = text.rstrip(INCOMPLETE)
        self._doubtful = text[len(sound) :]
        return sound

    def _newest_character(self) -> int:
        """Where the newest bytes begin that may still become a character: what came before never will."""
        whole = self._decode(self._window)
        for at in range(len(self._window) - 1, self._known, -1):
            if self._decode(self._window[:at]) + self._decode(self._window[at:]) == whole:
                return at
        return len(self._window)


def choose_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], ByteDecoder | WindowDecoder]:
    """What makes the decoder of a completion after a prompt: the fast way where it gives what the tokenizer gives."""

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if is_byte_level(tokenizer):
        pieces, size = Pieces(tokenizer.backend_tokenizer), len(tokenizer)
        probe = list(range(0, size, max(1, size // _PROBED)))
        decoder = ByteDecoder(pieces)
        if "".join(map(decoder.push, probe)) == decode(probe).rstrip(INCOMPLETE):
            return lambda prompt: ByteDecoder(pieces)
    return lambda prompt: WindowDecoder(decode, prompt)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it says that its tokens are bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.decoder).__name__ == "ByteLevel"


def _broken(begun: bytes, piece: bytes) -> int:
    """How many characters stand for bytes that begin one, if what comes next shows that they never become it."""
    try:
        codecs.utf_8_decode(begun + piece[:1] if begun else b"", "strict", False)
    except UnicodeDecodeError:
        return len(begun.decode(errors="replace"))
    return 0


def _byte_of() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: GPT-2's table."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()
