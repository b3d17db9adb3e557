"""Refusing what is far too long for the context before all of it is tokenized.

Tokenizers take some 300 bytes a token beside a microsecond or two, of what is refused afterwards too.
"""

from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import PromptTooLong

# No tokenizer packs more characters than this into a token on average; what is longer need not be tokenized to be
# refused. (The longest tokens of common vocabularies are runs of 128 spaces.)
_MOST_CHARACTERS_A_TOKEN = 128
_SELDOM = 8  # characters a token or more: text that can fit has half as many nearly always
_PIECE = 1 << 17  # characters: 40 MB of tokens where each is one, and four times that where each is four
_MOST_OF_A_CUT = 512  # tokens more than there are, where a piece ends within one: its bytes at most


def too_long(context_length: int, problem: str) -> PromptTooLong:
    """The refusal of a prompt, of which `problem` says what it has.

    It begins as OpenAI's and vLLM's do, and goes on as Anthropic's: by these words clients (litellm by the first,
    langchain by the latter) know that a shorter one, or another model, would do.
    """
    return PromptTooLong(
        "",
        f"This model's maximum context length is {context_length} tokens, at least one new one among them; "
        f"the prompt is too long: it {problem}",
    )


def check_characters(characters: int, context_length: int) -> None:
    """Raise PromptTooLong where so many are far more than the context holds, whatever they are."""
    if characters > context_length * _MOST_CHARACTERS_A_TOKEN:
        raise too_long(context_length, f"has {characters} characters, far more than that")


def is_doubtful(characters: int, context_length: int) -> bool:
    """Whether so many are seldom as few tokens as the context holds, or too many to be tokenized to find that out."""
    return characters > _piece(context_length)


def check_tokens(text: str, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
    """Raise PromptTooLong where the first pieces of a doubtful text have more tokens than the context holds.

    Never of one that fits: what lies across a cut counts for nothing. Others have few enough to be counted exactly.
    """
    size, least = _piece(context_length), 0
    if not is_doubtful(len(text), context_length):
        return
    for begin in range(0, len(text), size):
        piece = text[begin : begin + size]
        least += len(tokenizer.encode(piece, add_special_tokens=False)) - _MOST_OF_A_CUT
        if least >= context_length:
            raise too_long(
                context_length,
                f"has at least {least} tokens in the first {begin + len(piece)} of its {len(text)} characters. "
                "Shorten the prompt, or raise spec.engine.contextLength",
            )


def _piece(context_length: int) -> int:
    return min(_SELDOM * context_length, _PIECE)
