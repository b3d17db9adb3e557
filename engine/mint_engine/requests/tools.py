"""Functions that a chat may call: converts what clients send to what chat templates take.

Templates are Hugging Face's (https://huggingface.co/docs/transformers/chat_extras): `tools` are JSON values, and a
call's arguments are an object, which OpenAI's clients send as text.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, ToolCall
from mint_contracts.transport import MOST_TOOL_CHARACTERS

# Nesting depth of JSON values. Templates that indent take quadratic space in it; transformers recurses on them.
DEEPEST = 32

_NAME = r"^[a-zA-Z0-9_-]{1,64}\Z"  # OpenAI's rule; templates write names between quotes without escaping
_TAKES = re.compile(r"\btools\b")
# By form, what only templates that write calls in it have, in their text or, escaped, in a Jinja string. The first
# one counts.
_FORMS = {
    Chat.HERMES: re.compile(r'<tool_call>(?:\\n|\s)*\{\s*\\?"'),
    Chat.GLM: re.compile(r"<tool_call>[^<]*<arg_key>"),
    Chat.QWEN_CODER: re.compile(r"<tool_call>(?:\\n|\s)*<function="),
    Chat.KIMI: re.compile(r"<\|tool_call_argument_begin\|>"),
    Chat.DEEPSEEK: re.compile(r"<｜tool▁sep｜>.*```json", re.DOTALL),
    Chat.DEEPSEEK_V31: re.compile(r"<｜tool▁sep｜>"),
    Chat.DEEPSEEK_V32: re.compile(r"DSML.*function_calls>.*parameter name=", re.DOTALL),
    Chat.MINIMAX: re.compile(r"<minimax:tool_call>.*<parameter name=", re.DOTALL),
    Chat.HARMONY: re.compile(r"<\|channel\|>commentary"),
}
# How Llama 3's templates tell the model to call functions; and Mistral's templates that write an array, not [ARGS].
_LLAMA = re.compile(r'\{\\?"name\\?": function name, \\?"parameters\\?": dictionary of argument name and its value\}')
_MISTRAL = re.compile(r"\[TOOL_CALLS\] ?\[")
# Tokens without which calls cannot be read: they belong to the text even if a tokenizer has them as special tokens.
MARKS = {
    *("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    *("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "｜DSML｜"),
    *("<minimax:tool_call>", "</minimax:tool_call>"),
}


class _Function(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern=_NAME)]
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: _Function


def read_tools(text: str) -> list[Any]:
    """Return the functions of a chat's `tools`, none for an empty text. Raises InvalidRequest."""
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
    """Return a call as templates take it. Raises InvalidRequest naming the place."""
    if not re.fullmatch(_NAME, call.name):
        raise InvalidRequest(f"{place}.name", f"is {call.name[:100]!r}, which is not a valid name of a function")
    arguments = read_json(call.arguments or "{}", f"{place}.arguments")  # often left empty
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{place}.arguments", "are not a JSON object")
    fields = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return fields | ({"id": call.id} if call.id else {})


def check_template(template: str, chat: Chat, *, tools: bool) -> None:
    """Raise InvalidRequest for tools or calls that the template ignores, and for forms of calls it does not write."""
    if tools and not _TAKES.search(template):
        raise InvalidRequest(
            "prompt.chat.tools", "cannot be used: this base's chat template does not support them. Leave them out"
        )
    if "tool_calls" not in template and any(message.tool_calls for message in chat.messages):
        raise InvalidRequest(
            "prompt.chat.messages", "have tool calls, which this base's chat template does not support"
        )
    if chat.calls and chat.calls not in Chat.Calls.values():
        raise InvalidRequest("prompt.chat.calls", f"is {chat.calls}, which is not a known form")
    if chat.calls and form_of(template) not in (chat.calls, *chat.or_calls):
        raise InvalidRequest(
            "prompt.chat.calls",
            "cannot be read from this base's answers: its chat template writes none in a form that is asked for. "
            'A tool_choice of "required", or of one function, works',
        )


def form_of(template: str) -> "Chat.Calls.ValueType":
    """Return the form in which a template writes calls, or CALLS_UNSPECIFIED if it is not certainly a known one."""
    for form, mark in _FORMS.items():
        if mark.search(template):
            return form
    llama, mistral = _LLAMA.search(template), _MISTRAL.search(template)
    if "tool_calls" not in template or "[ARGS]" in template or bool(llama) == bool(mistral):
        return Chat.CALLS_UNSPECIFIED
    return Chat.LLAMA if llama else Chat.MISTRAL


def names(value: Any) -> Iterator[str]:
    """Yield every name in a JSON value of bounded depth; transformers does not sanitize control tokens in them."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from names(each)


def read_json(text: str, place: str) -> Any:
    """Return a JSON value of bounded depth. Raises InvalidRequest naming the place."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(place, f"cannot be read: {error}") from None
    if _depth_over(value, DEEPEST):
        raise InvalidRequest(place, f"is nested deeper than {DEEPEST} values")
    return value


def _depth_over(value: Any, most: int) -> bool:
    """Return whether values are nested deeper than `most`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most <= 0 or any(_depth_over(each, most - 1) for each in inner)
