"""Functions that a chat may call: what clients send of them, as chat templates take it.

Templates are Hugging Face's (https://huggingface.co/docs/transformers/chat_extras): `tools` are JSON values, and a
call's arguments are an object, which OpenAI's clients send as text.
"""

import re
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, ToolCall
from mint_contracts.transport import MOST_TOOL_CHARACTERS

# Values in one another. Templates that indent each take the square of it; transformers recurses on them.
DEEPEST = 32

_NAME = r"^[a-zA-Z0-9_-]{1,64}\Z"  # OpenAI's; templates write it between quotes as it is
_TAKES = re.compile(r"\btools\b")
# In Jinja's own text or in a string of it. Qwen3-Coder's and GLM's have the tag, too, and no JSON after it.
_TAG = "<tool_call>"
_HERMES = re.compile(_TAG + r'(?:\\n|\s)*\{\s*\\?"')
# What Llama 3's say to the model of how it calls; and of Mistral's those that write an array, not [ARGS].
_LLAMA = re.compile(r'\{\\?"name\\?": function name, \\?"parameters\\?": dictionary of argument name and its value\}')
_MISTRAL = re.compile(r"\[TOOL_CALLS\] ?\[")
_WRITTEN = {
    Chat.HERMES: f"{_TAG} with JSON in it",
    Chat.LLAMA: "JSON as Llama 3's",
    Chat.MISTRAL: "array as Mistral's",
}


class _Function(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern=_NAME)]
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: _Function


def read_tools(text: str) -> list[Any]:
    """The functions of a chat's `tools`; none of an empty text. Raises InvalidRequest."""
    place = "prompt.chat.tools"
    if not text:
        return []
    if len(text) > MOST_TOOL_CHARACTERS:
        raise InvalidRequest(place, f"has {len(text)} characters; at most {MOST_TOOL_CHARACTERS} are allowed")
    tools: list[Any] = read_json(text, place)
    try:
        msgspec.convert(tools, list[_Tool])
    except msgspec.ValidationError as error:
        raise InvalidRequest(place, f"are not valid functions: {error}") from None
    return tools


def read_call(call: ToolCall, place: str) -> dict[str, Any]:
    """A call as templates take it. Raises InvalidRequest, which names the place."""
    if not re.fullmatch(_NAME, call.name):
        raise InvalidRequest(f"{place}.name", f"is {call.name[:100]!r}, which is not a valid name of a function")
    arguments = read_json(call.arguments or "{}", f"{place}.arguments")  # many a provider's call without any has none
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{place}.arguments", "are not a JSON object")
    fields = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return fields | ({"id": call.id} if call.id else {})


def check_template(template: str, chat: Chat, special: Collection[str], *, tools: bool) -> None:
    """Refuse what the template would not write of tools, and calls that nobody could read.

    `special` are tokens that no text shows. Raises InvalidRequest.
    """
    if tools and not _TAKES.search(template):
        raise InvalidRequest(
            "prompt.chat.tools", "cannot be used: this base's chat template does not support them. Leave them out"
        )
    if "tool_calls" not in template and any(message.tool_calls for message in chat.messages):
        raise InvalidRequest(
            "prompt.chat.messages", "have tool calls, which this base's chat template does not support"
        )
    if chat.calls and chat.calls not in _WRITTEN:
        raise InvalidRequest("prompt.chat.calls", f"is {chat.calls}, which is not a known form")
    wanted = [_WRITTEN[form] for form in (chat.calls, *chat.or_calls) if form in _WRITTEN]  # of a newer gateway more
    if chat.calls and form_of(template, special) not in (chat.calls, *chat.or_calls):
        raise InvalidRequest(
            "prompt.chat.calls",
            f"cannot be read from this base's answers: its chat template has no {', and no '.join(wanted)}. "
            'A tool_choice of "required", or of one function, works',
        )


def form_of(template: str, special: Collection[str]) -> "Chat.Calls.ValueType":
    """The form in which a template writes calls, if it is surely a known one.

    `special` are tokens that no text shows: without their tags Hermes' calls can't be told from text, while Mistral's
    and Llama's begin an answer.
    """
    if _HERMES.search(template):
        return Chat.CALLS_UNSPECIFIED if _TAG in special else Chat.HERMES
    llama, mistral = _LLAMA.search(template), _MISTRAL.search(template)
    if "tool_calls" not in template or "[ARGS]" in template or bool(llama) == bool(mistral):
        return Chat.CALLS_UNSPECIFIED
    return Chat.LLAMA if llama else Chat.MISTRAL


def names(value: Any) -> Iterator[str]:
    """Every name in a JSON value of bounded depth: what transformers doesn't look for control tokens in."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from names(each)


def read_json(text: str, place: str) -> Any:
    """A JSON value of bounded depth. Raises InvalidRequest, which names the place."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(place, f"cannot be read: {error}") from None
    if _depth_over(value, DEEPEST):
        raise InvalidRequest(place, f"is nested deeper than {DEEPEST} values")
    return value


def _depth_over(value: Any, most: int) -> bool:
    """Whether values lie in one another deeper than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most <= 0 or any(_depth_over(each, most - 1) for each in inner)
