"""Messages of a chat, as OpenAI's clients write them, and as gRPC has them: pure.

They are history: answers come back with all that whoever gave them, or the client, has put into them (`parsed`,
`annotations`, `cache_control`). No model is told of that, so what is not read here is passed over; what asks for
something that isn't done is refused.
"""

from typing import Any

import msgspec

from mint_contracts import sampling_pb2
from mint_contracts.errors import InvalidRequest

# OpenAI's newer clients call a system's message so. Most templates pass over a role that they do not know, in
# silence; one that knows both means the same by them.
_SYSTEM = {"developer": "system"}
_TEXTS = frozenset(("text", "input_text", "output_text"))  # the latter two are the Responses API's
_THOUGHTS = "thinking"  # Anthropic's and Mistral's


class Part(msgspec.Struct, frozen=True):
    """A piece of a message; only text is read, and what others hold instead is refused by their type."""

    text: str | None = None
    type: str = "text"
    refusal: Any = None  # text, of the type that is named so
    thinking: Any = None  # as a message's `reasoning`; Mistral's is a list of pieces of text


class Called(msgspec.Struct, frozen=True):
    """Which function was called, and with what: a JSON object, which OpenAI's clients send as text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A call that the assistant made."""

    id: str
    function: Called


class Message(msgspec.Struct, frozen=True):
    """A message of a chat. The last fields ask for what isn't done here, unless they hold nothing."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool
    name: str | None = None  # whose words these are, or a tool's function; most templates don't read it
    refusal: str | None = None  # what an assistant said in place of an answer
    reasoning: Any = None  # what an assistant thought before it, if it is text
    reasoning_content: Any = None  # the same, as vLLM called it at first, and DeepSeek does
    audio: Any = None  # an assistant's, of which the content tells as well
    function_call: None = None
    prefix: bool | None = None  # the answer goes on with this message, as Mistral's and DeepSeek's clients say it
    partial: bool | None = None  # and Qwen's


_JSON = msgspec.json.Decoder(msgspec.Raw)  # made on import: threads that make it at once crash msgspec 0.22


def message(sent: Message, place: str) -> sampling_pb2.Message:
    """What a message means. Raises InvalidRequest, which names the place."""
    if sent.content is None and sent.role != "assistant":  # whose answer may have been an empty one
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
    """A call's arguments as JSON; "" of one without any.

    That is also one that was cut short, whose text is no JSON: else its chat could never go on. vLLM does the same.
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
    """What an assistant thought, by the first of the fields that has any; else by pieces of its content."""
    if found := _thought(sent.reasoning) or _thought(sent.reasoning_content):
        return found
    parts = sent.content if isinstance(sent.content, list) else ()
    return "".join(_thought(part.thinking) for part in parts if part.type == _THOUGHTS)


def _thought(thoughts: Any) -> str:
    """A text, or several; "" of what is neither, which others' clients may keep under the same name."""
    pieces = (
        [each.get("text") for each in thoughts if isinstance(each, dict)]
        if isinstance(thoughts, list)
        else [thoughts]
    )
    return "".join(each for each in pieces if isinstance(each, str))


def _content(sent: Message, place: str) -> str:
    if not isinstance(sent.content, list):
        return sent.content or ""
    thinks = sent.role == "assistant"  # which `_reasoning` reads
    return "".join(
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
