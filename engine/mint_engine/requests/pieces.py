"""Decodes tokens into characters, one token at a time.

A byte-level tokenizer (GPT-2's kind: Llama 3, Qwen, SmolLM and others) has bytes for each token, which only need
incremental decoding. For other kinds the tokenizer itself decodes a window of the newest tokens.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mint_engine.requests.tools import MARKS

Decode = Callable[[list[int]], str]

INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are not (yet) a character
_CONTEXT = 6  # tokens of the prompt to decode before the first ones, as some tokenizers strip a leading space
_MOST_CONTEXT = 12  # tokens, if those before the newest show no text
_LONGEST_CHARACTER = 4  # bytes in UTF-8, and so tokens
_PROBED = 512  # tokens on which the two ways are compared


class Pieces(dict[int, bytes]):
    """The bytes of each token of a byte-level vocabulary, computed on first use; b"" for tokens without text.

    Special tokens have one if they are `shown`, or marks of calls.
    """

    def __init__(self, backend: Any, *, shown: bool = False) -> None:
        super().__init__()
        self._name = backend.id_to_token
        self._skipped = frozenset() if shown else _hidden(backend.get_added_tokens_decoder())

    def __missing__(self, token: int) -> bytes:
        name = None if token in self._skipped else self._name(token)
        try:
            piece = bytes(_BYTE_OF[letter] for letter in name or "")
        except KeyError:  # an added token's name is its text
            piece = (name or "").encode()
        self[token] = piece
        return piece


class ByteDecoder:
    """Decodes one completion's bytes into characters."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self.begins = 0  # characters before the one that the newest token begins or continues
        self._whole = 0  # complete characters
        self._open = b""  # bytes of an incomplete character
        self._doubtful = ""  # INCOMPLETE at the end, emitted only if more follows

    def push(self, token: int) -> str:
        """Add a token and return the characters that became complete."""
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
        """Note a token that is not part of the text."""
        self.begins = self._whole

    def finish(self) -> str:
        """Return "", since the remaining bytes never became a character."""
        return ""


class WindowDecoder:
    """Decodes one completion with the tokenizer: the newest tokens, after some whose text is already emitted."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = _context(decode, prompt)
        self._known = len(self._window)  # tokens of the window whose text is settled
        self.begins = 0  # as in ByteDecoder; within bytes that are not (yet) a character, where these begin
        self._settled = 0  # settled characters
        self._doubtful = ""  # INCOMPLETE at the end of the settled text, emitted only if more follows

    def push(self, token: int) -> str:
        """Add a token and return the characters that became complete."""
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
        """Note a token that is not part of the text."""
        self.begins = self._settled + len(self._fresh(len(self._window)).rstrip(INCOMPLETE))

    def finish(self) -> str:
        """Return the text that was held back because incomplete bytes followed it."""
        end = len(self._window)
        return self._settle(end, self._fresh(end))

    def _fresh(self, end: int) -> str:
        """Return the text of the window's tokens from the first unsettled one up to `end`."""
        return self._decode(self._window[:end])[len(self._decode(self._window[: self._known])) :]

    def _settle(self, end: int, fresh: str) -> str:
        """Settle the fresh text of the tokens before `end`, and return what may be emitted."""
        text = self._doubtful + fresh
        if fresh or end > _MOST_CONTEXT:
            self._window, self._known = self._window[self._known :], end - self._known
        else:  # a special token: without the text before it, the next token might be stripped of its leading space
            self._known = end
        self._settled += len(fresh)
        sound = text.rstrip(INCOMPLETE)
        self._doubtful = text[len(sound) :]
        return sound

    def _newest_character(self) -> int:
        """Return where the newest bytes begin that may still become a character; earlier ones never will."""
        whole = self._decode(self._window)
        for at in range(len(self._window) - 1, self._known, -1):
            if self._decode(self._window[:at]) + self._decode(self._window[at:]) == whole:
                return at
        return len(self._window)


def _context(decode: Decode, prompt: Sequence[int]) -> list[int]:
    """Return the prompt's last tokens. After a part of a character SentencePiece would show none that follow."""
    ends = [list(prompt[-length:]) for length in range(_CONTEXT, _CONTEXT + _LONGEST_CHARACTER)]
    return next((each for each in ends if INCOMPLETE not in decode(each)), ends[0])


def choose_decoder(
    tokenizer: PreTrainedTokenizerBase, *, shows_special: bool = False
) -> Callable[[Sequence[int]], ByteDecoder | WindowDecoder]:
    """Return a factory of decoders from prompts: the fast kind if it decodes as the tokenizer does."""

    hidden = frozenset() if shows_special else _hidden(tokenizer.added_tokens_decoder)

    def decode(ids: list[int]) -> str:
        shown = [each for each in ids if each not in hidden]
        return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    if is_byte_level(tokenizer):
        pieces, size = Pieces(tokenizer.backend_tokenizer, shown=shows_special), len(tokenizer)
        probe = list(range(0, size, max(1, size // _PROBED)))
        decoder = ByteDecoder(pieces)
        if "".join(map(decoder.push, probe)) == decode(probe).rstrip(INCOMPLETE):
            return lambda prompt: ByteDecoder(pieces)
    return lambda prompt: WindowDecoder(decode, prompt)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer declares itself byte-level."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and type(backend.decoder).__name__ == "ByteLevel"


def _hidden(added: Mapping[int, Any]) -> frozenset[int]:
    """Return the tokens that are no text, of the added ones by their ids."""
    return frozenset(id_ for id_, token in added.items() if token.special and token.content not in MARKS)


def _broken(begun: bytes, piece: bytes) -> int:
    """Return how many replacement characters stand for `begun` if `piece` shows that it never becomes a character."""
    try:
        codecs.utf_8_decode(begun + piece[:1] if begun else b"", "strict", False)
    except UnicodeDecodeError:
        return len(begun.decode(errors="replace"))
    return 0


def _byte_of() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()
