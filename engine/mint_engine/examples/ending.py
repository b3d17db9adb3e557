"""What a base's chat template puts around a training answer, so that a policy learns to begin and to end as it does.

As in TRL's SFTTrainer: the end of sequence after a text; around an answer in a chat, what the template writes there.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from mint_engine.examples.example import Message
from mint_engine.model.chat_template import written
from mint_engine.requests.thoughts import BEGIN

_QUESTION, _ANSWER = "Well?", "Certainly42"  # looked for in the template's output
_CHAT = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
_MARKER = re.compile(r"<[^<>\s]+>")  # as <think> or <|channel|>


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


def introduced(tokenizer: PreTrainedTokenizerBase, answer: str, variables: str) -> str:
    """Return a chat's answer after what the template puts before it, with these variables of the template (JSON).

    An answer that has one of the markers there, as one with a thought of its own, stays as it is.
    """
    before = _before_answers(tokenizer, variables)
    return answer if any(marker in answer for marker in _MARKER.findall(before)) else before + answer


def begins_thought(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], variables: Mapping[str, Any]) -> bool:
    """Return whether a chat's prompt ends with the beginning of a thought, which the answer then must end."""
    messages = [{"role": each.role, "content": each.content} for each in chat]
    return written(tokenizer, messages, add_generation_prompt=True, **variables).rstrip().endswith(BEGIN)


@lru_cache(16)
def _before_answers(tokenizer: PreTrainedTokenizerBase, variables: str) -> str:
    """Return what the template puts between a prompt and its answer: an empty thought, say, or a message's header.

    Returns "" if what it writes with an answer does not continue the prompt, and for white space alone, as Mixtral's
    template writes: many tokenizers put a space of their own before each text.
    """
    told = msgspec.json.decode(variables)
    asked = written(tokenizer, _CHAT[:1], add_generation_prompt=True, **told)
    whole = written(tokenizer, _CHAT, **told)
    pairs = enumerate(zip(asked, whole, strict=False))
    common = next((at for at, (one, other) in pairs if one != other), min(len(asked), len(whole)))
    before, found, _ = whole[common:].partition(_ANSWER)
    continues = found and _QUESTION in asked[:common] and not asked[common:].strip()
    return before if continues and before.strip() else ""


def _behind_answers(tokenizer: PreTrainedTokenizerBase, eos: Set[int]) -> tuple[int, ...]:
    """Return the tokens that the template puts after an answer, up to the first of `eos`."""
    _, found, behind = written(tokenizer, _CHAT).rpartition(_ANSWER)
    tokens = tokenizer.encode(behind, add_special_tokens=False) if found else []
    last = next((at for at, token in enumerate(tokens) if token in eos), -1)
    return tuple(tokens[: last + 1])
