"""What ends an answer that is to be learnt: whoever has learnt it ends by a token at which completions stop.

As in TRL's SFTTrainer: after a text the end of sequence, in a chat what the base's template puts behind an answer.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_ANSWER = "Certainly42"  # found again in what a template makes of it


@dataclass(frozen=True)
class Ends:
    """The tokens that end the answer to a text, and to a chat; none where nothing ends a completion."""

    text: tuple[int, ...] = ()
    chat: tuple[int, ...] = ()


def ends_of(tokenizer: PreTrainedTokenizerBase, end: int | None, eos: Set[int]) -> Ends:
    """Of a base whose completions stop at any of `eos`, and whose texts end with `end`.

    A template that puts none of `eos` behind an answer ends no completion: chats then end as texts do.
    """
    text = () if end is None else (end,)
    return Ends(text, _behind_answers(tokenizer, eos) or text)


def _behind_answers(tokenizer: PreTrainedTokenizerBase, eos: Set[int]) -> tuple[int, ...]:
    """What the template puts there up to the first of `eos`."""
    if not tokenizer.chat_template:
        return ()
    chat = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        written: Any = tokenizer.apply_chat_template(chat, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # it takes no such chat
        return ()
    _, found, behind = str(written).rpartition(_ANSWER)
    tokens = tokenizer.encode(behind, add_special_tokens=False) if found else []
    last = next((at for at, token in enumerate(tokens) if token in eos), -1)
    return tuple(tokens[: last + 1])
