"""Fits a chat to its template where published templates reject, or mix up, what OpenAI's clients send. Pure.

So every answer can be sent back, and a chat that began with another base can go on.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from mint_engine.requests.channels import writes_channels

Message = dict[str, Any]

_SYSTEM = ("system", "developer")
_SINGLE_SYSTEM = "System message must be at the beginning"  # how Qwen3.5's and later ones refuse another
_SINGLE_CALLS = "only supports single tool-calls"  # how Llama 3.1's and 3.2's templates refuse several
_SHORT_IDS = re.compile(r"\bid\s*\|\s*length\s*!=\s*9\b")  # Mistral's
_ID_LENGTH = 9
_NUMBERED_IDS = "<|tool_call_argument_begin|>"  # Kimi-K2's, which writes a call's id for the function's name
_ADDS_ARGUMENTS = re.compile(r"\barguments['\"\]]*\s*\+")  # DeepSeek's
_ADDS_DESCRIPTION = re.compile(r"\+\s*\(?(?:tool|fn)(?:\.function)?\.description\b")  # gpt-oss', DeepSeek-V3.1's


def fit_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """Return messages as the template takes them, with the results of calls in the calls' order.

    Where it demands so, all system messages are one, at the beginning, each call has a message of its own, its id is
    nine characters, or the function's name and a number, and its arguments are text.
    """
    fitted, channels = _results_in_order(messages), writes_channels(template)
    if channels or _SINGLE_SYSTEM in template:
        fitted = _one_system(fitted)
    if channels or _SINGLE_CALLS in template:
        fitted = _one_call_each(fitted)
    if channels:
        fitted = [_thought_alone(message) if "tool_calls" in message else message for message in fitted]
    if _NUMBERED_IDS in template:
        fitted = _with_numbered_ids(fitted)
    if _ADDS_ARGUMENTS.search(template):
        fitted = [_with_text(message) for message in fitted]
    return [_with_short_ids(message) for message in fitted] if _SHORT_IDS.search(template) else fitted


def fit_tools(tools: Sequence[Any], template: str) -> list[Any]:
    """Return functions as the template takes them: each with a description, if it cannot do without."""
    if not _ADDS_DESCRIPTION.search(template):
        return list(tools)
    return [tool | {"function": {"description": ""} | tool["function"]} for tool in tools]


def _results_in_order(messages: Sequence[Message]) -> list[Message]:
    """Put the results after a message in the order of its calls: most templates write no ids."""
    fitted, places = list[Message](), dict[str, int]()
    for are_results, some in groupby(messages, lambda message: message["role"] == "tool"):
        run = list(some)
        if are_results:
            run.sort(key=lambda result: places.get(result.get("tool_call_id", ""), len(places)))
        else:
            places = {call["id"]: place for place, call in enumerate(run[-1].get("tool_calls", ())) if "id" in call}
        fitted += run
    return fitted


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


def _with_numbered_ids(messages: Sequence[Message]) -> list[Message]:
    """Name calls as Kimi-K2 does, "functions.NAME:NUMBER", numbered from 0 throughout the chat."""
    fitted, ids, count = list[Message](), dict[str, str](), 0
    for message in messages:
        own: Message = {}
        if calls := message.get("tool_calls", ()):
            names = [f"functions.{call['function']['name']}:{number}" for number, call in enumerate(calls, count)]
            own["tool_calls"] = [call | {"id": name} for call, name in zip(calls, names, strict=True)]
            ids |= {call["id"]: name for call, name in zip(calls, names, strict=True) if "id" in call}
            count += len(calls)
        if "tool_call_id" in message:
            own["tool_call_id"] = ids.get(message["tool_call_id"], message["tool_call_id"])
        fitted.append(message | own)
    return fitted


def _with_text(message: Message) -> Message:
    """Have calls' arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    texts = [each | {"arguments": json.dumps(each["arguments"], ensure_ascii=False)} for each in functions]
    calls = [call | {"function": text} for call, text in zip(message["tool_calls"], texts, strict=True)]
    return message | {"tool_calls": calls}
