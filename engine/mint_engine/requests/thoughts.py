"""Thoughts that a model writes before its answer, between `<think>` and `</think>`.

These are the markers of Qwen3, DeepSeek, GLM, Kimi and most others. Whether a base thinks is found out from its
tokenizer and its chat template, and how an answer begins from its prompt's end.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mint_contracts.sampling_pb2 import Chat, Started
from mint_engine.requests.tools import read_tools

BEGIN, END = "<think>", "</think>"

_TAIL = 8  # tokens: what templates write after a marker, at most some line ends


class Markers(NamedTuple):
    """The tokens that begin and end a thought."""

    begin: int
    end: int


class Ahead(NamedTuple):
    """A thought that comes, or may come, before the answer proper."""

    markers: Markers
    begun: bool  # whether it has begun, in the prompt at first


def find_markers(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """Return the markers if both are added tokens that the text shows; as special tokens it would not."""
    shown = {str(token.content): id_ for id_, token in tokenizer.added_tokens_decoder.items() if not token.special}
    return Markers(shown[BEGIN], shown[END]) if BEGIN in shown and END in shown else None


def read_thought(
    chat: Chat, prompt: Sequence[int], markers: Markers | None, tokenizer: PreTrainedTokenizerBase
) -> "Started.Thought.ValueType":
    """Return how the answer to an already checked chat begins; NO_THOUGHT if nobody asks.

    What messages have of the tokens that a template writes stays text, so only the template's own markers count: no
    user decides where the answer begins.
    """
    if not chat.thoughts or markers is None:
        return Started.NO_THOUGHT
    template = tokenizer.get_chat_template(tools=read_tools(chat.tools) or None)
    written = {marker for marker, text in zip(markers, (BEGIN, END), strict=True) if text in template}
    if not written:
        return Started.NO_THOUGHT
    for token in reversed(prompt[-_TAIL:]):
        if token in written:
            return Started.BEGUN if token == markers.begin else Started.NO_THOUGHT
        if str(tokenizer.decode([token])).strip():
            break
    return Started.POSSIBLE


def after(token: int, ahead: Ahead | None) -> Ahead | None:
    """Return what comes before the answer proper after this token: the thought, or None since it has ended."""
    if ahead is None:
        return None
    goes_on = token != ahead.markers.end if ahead.begun else token == ahead.markers.begin
    return Ahead(ahead.markers, begun=True) if goes_on else None


def ahead(thought: "Started.Thought.ValueType", markers: Markers | None) -> Ahead | None:
    """Return what comes before the answer proper, or None."""
    if markers is None or thought == Started.NO_THOUGHT:
        return None
    return Ahead(markers, begun=thought == Started.BEGUN)
