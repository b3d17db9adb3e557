"""Fits a chat to its template where published templates reject, or mix up, what OpenAI's clients send. Pure.

So every answer can be sent back, and a chat that began with another base can go on.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from mint_engine.requests.channels import writes_channels

Message = dict[str, Any]

_SYSTEM = ("system", "developer")
_SINGLE_SYSTEM = "System message must be at the beginning"  # how Qwen3.5's and later ones refuse another
_SINGLE_CALLS = "only supports single tool-calls"  # how Llama 3.1's and 3.2's templates refuse several
_SHORT_IDS = re.compile(r"\bid\s*\|\s*length\s*!=\s*9\b")  # Mistral's
_ID_LENGTH = 9
_ADDS_DESCRIPTION = re.compile(r"\+\s*\(?(?:tool|fn)(?:\.function)?\.description\b")  # gpt-oss', DeepSeek-V3.1's


def fit_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """Return messages as the template takes them.

    Where it demands so, all system messages are one, at the beginning, each call has a message of its own, and its id
    nine characters.
    """
    fitted, channels = list(messages), writes_channels(template)
    if channels or _SINGLE_SYSTEM in template:
        fitted = _one_system(fitted)
    if channels or _SINGLE_CALLS in template:
        fitted = _one_call_each(fitted)
    if channels:
        fitted = [_thought_alone(message) if "tool_calls" in message else message for message in fitted]
    return [_with_short_ids(message) for message in fitted] if _SHORT_IDS.search(template) else fitted


def fit_tools(tools: Sequence[Any], template: str) -> list[Any]:
    """Return functions as the template takes them: each with a description, if it cannot do without."""
    if not _ADDS_DESCRIPTION.search(template):
        return list(tools)
    return [tool | {"function": {"description": ""} | tool["function"]} for tool in tools]


def _one_system(messages: Sequence[Message]) -> list[Message]:
    """Join all system messages into one at the beginning: gpt-oss' template silently drops those elsewhere."""
    system = [message for message in messages if message["role"] in _SYSTEM]
    others = [message for message in messages if message["role"] not in _SYSTEM]
    joined = [system[0] | {"content": "\n\n".join(message["content"] for message in system)}] if system else []
    return joined + others


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Give each call a message of its own, followed by its results. The first has all else that was said.

    gpt-oss' template renders only one call of a message, and takes the next results for that call's.
    """
    turns: list[list[Message]] = [[]]  # each a message, with a call's results after it
    called: dict[str, list[Message]] = {}  # the turns of the latest calls, by id
    for message in messages:
        if message["role"] == "tool":
            called.get(message.get("tool_call_id", ""), turns[-1]).append(message)
            continue
        calls = message.get("tool_calls", ())
        own = [[{"role": message["role"], "content": "", "tool_calls": [call]}] for call in calls] or [[message]]
        if calls:
            own[0][0] = message | {"tool_calls": calls[:1]}
        called = {call["id"]: turn for call, turn in zip(calls, own, strict=False) if "id" in call}
        turns += own
    return [message for turn in turns for message in turn]


def _thought_alone(message: Message) -> Message:
    """Move a text before a call to the thought: gpt-oss' template refuses both, and renders the text as a thought."""
    thinking = "\n".join(filter(None, (message.get("thinking"), message["content"])))
    return message | {"content": "", "thinking": thinking}


def _with_short_ids(message: Message) -> Message:
    fitted = dict(message)
    if "tool_calls" in message:
        fitted["tool_calls"] = [
            call | {"id": _short(call["id"])} if "id" in call else call for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        fitted["tool_call_id"] = _short(message["tool_call_id"])
    return fitted


def _short(id_: str) -> str:
    return id_ if len(id_) == _ID_LENGTH else hashlib.sha256(id_.encode()).hexdigest()[:_ID_LENGTH]
