"""The text of tokens, for clients that get log-probabilities and have no tokenizer."""

import re

from transformers import PreTrainedTokenizerBase

from mint_engine.requests.pieces import Pieces, is_byte_level

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's name of a byte of an unknown character


class Spelling(dict[int, bytes]):
    """The bytes of each token, computed on first use; for a special token those of its name.

    b"" for a row of the vocabulary without a token. A token may be part of a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._named = tokenizer.added_tokens_decoder
        self._pieces = Pieces(tokenizer.backend_tokenizer) if is_byte_level(tokenizer) else None
        self._before = tokenizer.encode("a", add_special_tokens=False)  # some tokenizers strip a leading space

    def __missing__(self, token: int) -> bytes:
        self[token] = self._spell(token)
        return self[token]

    def _spell(self, token: int) -> bytes:
        if token in self._named:
            return str(self._named[token].content).encode()
        if self._pieces is not None:
            return self._pieces[token]
        if not 0 <= token < len(self._tokenizer):
            return b""
        byte = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token)))
        if byte:
            return bytes([int(byte[1], 16)])
        return self._decode([*self._before, token]).removeprefix(self._decode(self._before)).encode()

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
