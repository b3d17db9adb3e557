"""The tokens that end a training answer, so that the policy learns to end with a token that stops completions.

As in TRL's SFTTrainer: the end of sequence after a text, what the base's template puts after an answer in a chat.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_ANSWER = "Certainly42"  # looked for in the template's output


@dataclass(frozen=True)
class Ends:
    """The tokens that end the answer to a text, and to a chat; empty if nothing ends a completion."""

    text: tuple[int, ...] = ()
    chat: tuple[int, ...] = ()


def ends_of(tokenizer: PreTrainedTokenizerBase, end: int | None, eos: Set[int]) -> Ends:
    """Return the ends for a base whose completions stop at any of `eos`, and whose texts end with `end`.

    If the template puts none of `eos` after an answer, chats end as texts do.
    """
    text = () if end is None else (end,)
    return Ends(text, _behind_answers(tokenizer, eos) or text)


def _behind_answers(tokenizer: PreTrainedTokenizerBase, eos: Set[int]) -> tuple[int, ...]:
    """Return the tokens that the template puts after an answer, up to the first of `eos`."""
    if not tokenizer.chat_template:
        return ()
    chat = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        written: Any = tokenizer.apply_chat_template(chat, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # the template refuses this chat
        return ()
    _, found, behind = str(written).rpartition(_ANSWER)
    tokens = tokenizer.encode(behind, add_special_tokens=False) if found else []
    last = next((at for at, token in enumerate(tokens) if token in eos), -1)
    return tuple(tokens[: last + 1])
