"""The offset in characters at which each token of a prompt begins; for part of a character, that character's."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from mint_contracts.sampling_pb2 import GenerateRequest
from mint_engine.requests.pieces import ByteDecoder
from mint_engine.requests.spelling import Spelling


def prompt_offsets(
    request: GenerateRequest, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase, spelling: Spelling
) -> tuple[int, ...]:
    """Return the offsets of all tokens: in the text as it was sent, or else in the text of the tokens.

    A token that the tokenizer adds (for example a beginning of sequence) gets the offset of the next token.
    """
    if request.WhichOneof("prompt") != "text" or not tokenizer.is_fast:
        return tuple(_as_written(prompt, spelling))
    spans = tokenizer(request.text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(_in_text(request.text, spans, (spelling[token] for token in prompt)))


def _as_written(prompt: Iterable[int], spelling: Spelling) -> Iterable[int]:
    """Yield the offsets of tokens in their joint text, in which invalid bytes are replaced."""
    decoder = ByteDecoder(spelling)
    for token in prompt:
        decoder.push(token)
        yield decoder.begins


def _in_text(text: str, spans: Iterable[tuple[int, int]], written: Iterable[bytes]) -> Iterable[int]:
    """Yield the offsets of tokens from the tokenizer's spans, which are (0, 0) for tokens that it adds.

    Some tokenizers exclude a token's leading and trailing spaces from its span (`trim_offsets`).
    """
    before = 0  # the end of the text covered so far
    for (begin, end), piece in zip(spans, written, strict=True):
        token = piece.decode(errors="replace")
        spaced = max(before, begin - len(token) + len(token.lstrip()))
        if not end:
            yield before
        elif text[spaced:begin].isspace():
            yield spaced
        else:
            yield begin
        before = max(before, end)
