"""Refuses prompts that are far too long for the context before all of them are tokenized.

Tokenizing costs about 300 bytes and a microsecond or two per token, even if the prompt is then refused.
"""

from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import PromptTooLong

# No tokenizer packs more characters than this into a token on average, so longer texts are refused without being
# tokenized. (The longest tokens of common vocabularies are runs of 128 spaces.)
_MOST_CHARACTERS_A_TOKEN = 128
_SELDOM = 8  # characters per token, which text rarely reaches: usually it has half as many
_PIECE = 1 << 17  # characters: 40 MB of tokens if each is one token, and four times that if each is four
_MOST_OF_A_CUT = 512  # extra tokens that a cut within a token can cause: at most the token's bytes


def too_long(context_length: int, problem: str) -> PromptTooLong:
    """Return the error for a prompt that is too long; `problem` says what the prompt has.

    The message begins like OpenAI's and vLLM's, and goes on like Anthropic's. Clients recognise these words (litellm
    the first, langchain the second) as a sign that a shorter prompt or another model would work.
    """
    return PromptTooLong(
        "",
        f"This model's maximum context length is {context_length} tokens, at least one new one among them; "
        f"the prompt is too long: it {problem}",
    )


def check_characters(characters: int, context_length: int) -> None:
    """Raise PromptTooLong if this number of characters exceeds the context, whatever they are."""
    if characters > context_length * _MOST_CHARACTERS_A_TOKEN:
        raise too_long(context_length, f"has {characters} characters, far more than that")


def is_doubtful(characters: int, context_length: int) -> bool:
    """Return whether a text of this length rarely fits the context, or is too long to be tokenized to find out."""
    return characters > _piece(context_length)


def check_tokens(text: str, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
    """Raise PromptTooLong if the first pieces of a doubtful text have more tokens than the context holds.

    Never raises for a text that fits, since tokens that a cut may add are not counted. Texts that pass are short
    enough to be counted exactly.
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
