"""Where each token of a prompt begins in its text, in characters: a part of one where that character does."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from mint_contracts.sampling_pb2 import GenerateRequest
from mint_engine.requests.pieces import ByteDecoder
from mint_engine.requests.spelling import Spelling


def prompt_offsets(
    request: GenerateRequest, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase, spelling: Spelling
) -> tuple[int, ...]:
    """Of all its tokens: into a text as it was sent, else into what the tokens are written as.

    One that the tokenizer adds to a text (a beginning of sequence, say) has no place in it: it is where the next is.
    """
    if request.WhichOneof("prompt") != "text" or not tokenizer.is_fast:
        return tuple(_as_written(prompt, spelling))
    spans = tokenizer(request.text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(_in_text(request.text, spans, (spelling[token] for token in prompt)))


def _as_written(prompt: Iterable[int], spelling: Spelling) -> Iterable[int]:
    """The places of tokens in what all of them together are, those bytes replaced that are no character."""
    decoder = ByteDecoder(spelling)
    for token in prompt:
        decoder.push(token)
        yield decoder.begins


def _in_text(text: str, spans: Iterable[tuple[int, int]], written: Iterable[bytes]) -> Iterable[int]:
    """The places of tokens of which the tokenizer tells where they begin and end; of one that it adds, 0 and 0.

    Some tokenizers leave out of that the spaces that a token begins or ends with (`trim_offsets`).
    """
    before = 0  # where the text ends that tokens have had
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
