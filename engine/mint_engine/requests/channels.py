"""Channels: the messages that gpt-oss' answers consist of, in its format harmony (https://github.com/openai/harmony).

Each is a header, "<|message|>" and a text. The header names the channel: "analysis" for a thought, "final" for the
answer. "<|end|><|start|>assistant" leads to the next message; "<|return|>" or, after a call, "<|call|>" is the end.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from mint_contracts.sampling_pb2 import Chat, Started
from mint_engine.requests.tools import read_tools

_AUTHOR = "assistant"
_TAIL = 1 + len(_AUTHOR)  # tokens: a marker and, at most, one for each letter


class Channels(NamedTuple):
    """The format's markers, as tokens."""

    start: int
    channel: int
    constrain: int
    message: int
    end: int
    call: int
    final: int  # "<|return|>"

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that end an answer."""
        return self.final, self.call


def find_channels(tokenizer: PreTrainedTokenizerBase) -> Channels | None:
    """Return the markers if the tokenizer has all of them as added tokens."""
    added = {str(token.content): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    names = ("start", "channel", "constrain", "message", "end", "call", "return")
    found = [added[f"<|{name}|>"] for name in names if f"<|{name}|>" in added]
    return Channels(*found) if len(found) == len(names) else None


def writes_channels(template: str) -> bool:
    """Return whether a chat template writes answers as messages in channels."""
    return "<|channel|>analysis<|message|>" in template and "<|channel|>final<|message|>" in template


def read_channels(
    chat: Chat, prompt: Sequence[int], channels: Channels | None, tokenizer: PreTrainedTokenizerBase
) -> "Started.Thought.ValueType":
    """Return CHANNELS if the answer to an already checked chat consists of messages and somebody asks, or NO_THOUGHT.

    The prompt must end with the first message's author: what messages have of a marker is no such token.
    """
    if not chat.channels or channels is None:
        return Started.NO_THOUGHT
    if not writes_channels(tokenizer.get_chat_template(tools=read_tools(chat.tools) or None)):
        return Started.NO_THOUGHT
    tail = list(prompt[-_TAIL:])
    begun = max((at for at, token in enumerate(tail, start=1) if token == channels.start), default=_TAIL)
    return Started.CHANNELS if tokenizer.decode(tail[begun:]) == _AUTHOR else Started.NO_THOUGHT


def before_final(channels: Channels) -> str:
    """Return what comes before the final message's text, thoughts and its header, in llguidance's syntax."""
    channel, message = f"<[{channels.channel}]>", f"<[{channels.message}]>"
    analysis = f'{channel} "analysis" {message} /(?s:.*)/ <[{channels.end}]> <[{channels.start}]> "{_AUTHOR}"'
    return f'({analysis})* {channel} "final" {message} '
