"""Converting a chat's messages from OpenAI's format to gRPC's: pure.

Messages are history: answers come back with everything that their server or the client put into them (`parsed`,
`annotations`, `cache_control`). Models do not see that, so unknown fields are ignored; fields that ask for something
unsupported are refused.
"""

from typing import Any

import msgspec

from mint_contracts import sampling_pb2
from mint_contracts.errors import InvalidRequest

# The name that OpenAI's newer clients use for the system's role. Most templates silently skip a role that they do not
# know; one that knows both treats them the same.
_SYSTEM = {"developer": "system"}
_TEXTS = frozenset(("text", "input_text", "output_text"))  # the latter two are the Responses API's
_THOUGHTS = "thinking"  # Anthropic's and Mistral's


class Part(msgspec.Struct, frozen=True):
    """A piece of a message. Only text is read; pieces of other types are refused by their type."""

    text: str | None = None
    type: str = "text"
    refusal: Any = None  # the text of a piece of the type "refusal"
    thinking: Any = None  # like a message's `reasoning`; Mistral's is a list of text pieces


class Called(msgspec.Struct, frozen=True):
    """The function called and its arguments: a JSON object, which OpenAI's clients send as text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A call that the assistant made."""

    id: str
    function: Called


class Message(msgspec.Struct, frozen=True):
    """A message of a chat. Fields from `audio` on ask for something unsupported, unless they are empty."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None  # an assistant's only
    tool_call_id: str | None = None  # a tool's only
    name: str | None = None  # the speaker's name, or a tool's function; most templates don't read it
    refusal: str | None = None  # what an assistant said instead of an answer
    reasoning: Any = None  # an assistant's reasoning before its answer, if it is text
    reasoning_content: Any = None  # the same, vLLM's first name for it and DeepSeek's
    audio: Any = None  # an assistant's audio, allowed if the content has its text
    function_call: None = None
    prefix: bool | None = None  # continue this message in the answer, as Mistral's and DeepSeek's clients ask
    partial: bool | None = None  # the same, Qwen's name for it


_JSON = msgspec.json.Decoder(msgspec.Raw)  # made on import: creating it in two threads at once crashes msgspec 0.22


def message(sent: Message, place: str) -> sampling_pb2.Message:
    """Convert a message. Raises InvalidRequest, which names the place."""
    if sent.content is None and sent.role != "assistant":  # an assistant's answer may have been empty
        raise InvalidRequest(f"{place}.content", "is missing")
    if sent.tool_calls and sent.role != "assistant":
        problem = f"are of the role {sent.role[:100]!r}; only an assistant's message may have them"
        raise InvalidRequest(f"{place}.tool_calls", problem)
    if sent.tool_call_id and sent.role != "tool":
        problem = f"is of the role {sent.role[:100]!r}; only a tool's message may have it"
        raise InvalidRequest(f"{place}.tool_call_id", problem)
    if sent.audio is not None and not (sent.role == "assistant" and sent.content):
        raise InvalidRequest(f"{place}.audio", "is not supported; give its transcript as content")
    for name, value in (("prefix", sent.prefix), ("partial", sent.partial)):
        if value:
            raise InvalidRequest(f"{place}.{name}", "is not supported; leave it out")
    calls = [
        _call(call, f"{place}.tool_calls[{at}].function.arguments") for at, call in enumerate(sent.tool_calls or ())
    ]
    return sampling_pb2.Message(
        role=_SYSTEM.get(sent.role, sent.role),
        content=_content(sent, place) + (sent.refusal or ""),
        tool_calls=calls,
        tool_call_id=sent.tool_call_id or "",
        name=sent.name or "",
        reasoning=_reasoning(sent) if sent.role == "assistant" else "",
    )


def _call(call: ToolCall, place: str) -> sampling_pb2.ToolCall:
    arguments = _arguments(call.function.arguments, place)
    return sampling_pb2.ToolCall(id=call.id, name=call.function.name, arguments=arguments)


def _arguments(arguments: str | dict[str, Any] | None, place: str) -> str:
    """Return a call's arguments as JSON, or "" if there are none.

    A call that was cut short, whose text is not JSON, also gives "": otherwise its chat could never continue. vLLM
    does the same.
    """
    try:
        if isinstance(arguments, dict):
            return msgspec.json.encode(arguments).decode()
        return "" if not arguments or bytes(_JSON.decode(arguments)) == b"null" else arguments
    except msgspec.DecodeError:
        return ""
    except RecursionError:
        raise InvalidRequest(place, "are nested too deeply") from None


def _reasoning(sent: Message) -> str:
    """Return an assistant's reasoning from the first field that has any, else from pieces of its content."""
    if found := _thought(sent.reasoning) or _thought(sent.reasoning_content):
        return found
    parts = sent.content if isinstance(sent.content, list) else ()
    return "".join(_thought(part.thinking) for part in parts if part.type == _THOUGHTS)


def _thought(thoughts: Any) -> str:
    """Return a text, or several joined; "" for anything else, since other clients may use the name differently."""
    pieces = (
        [each.get("text") for each in thoughts if isinstance(each, dict)]
        if isinstance(thoughts, list)
        else [thoughts]
    )
    return "".join(each for each in pieces if isinstance(each, str))


def _content(sent: Message, place: str) -> str:
    if not isinstance(sent.content, list):
        return sent.content or ""
    thinks = sent.role == "assistant"  # `_reasoning` reads its thoughts
    # A line each, as in vLLM: tools often return a list of results so, which must not run into one another.
    return "\n".join(
        _text(part, f"{place}.content[{at}]")
        for at, part in enumerate(sent.content)
        if not (thinks and part.type == _THOUGHTS)
    )


def _text(part: Part, place: str) -> str:
    if part.type == "refusal" and isinstance(part.refusal, str):
        return part.refusal
    if part.type not in _TEXTS:
        raise InvalidRequest(place, f"is of type {part.type[:100]!r}; only text is supported")
    if part.text is None:
        raise InvalidRequest(f"{place}.text", "is missing")
    return part.text
