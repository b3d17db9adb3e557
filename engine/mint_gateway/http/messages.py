"""Messages of a chat, as OpenAI's clients write them, and as gRPC has them: pure."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mint_contracts import sampling_pb2
from mint_contracts.errors import InvalidRequest

# OpenAI's newer clients call a system's message so. Most templates pass over a role that they do not know, in
# silence; one that knows both means the same by them.
_SYSTEM = {"developer": "system"}

_Empty = Annotated[list[Any], Meta(max_length=0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message; only text is read, and what others hold instead is refused by their type."""

    text: str | None = None
    type: str = "text"
    prompt_cache_breakpoint: dict[str, Any] | None = None  # changes no answer
    image_url: Any = None
    video_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Called(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which function was called, and with what: a JSON object as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call that the assistant made."""

    id: str
    function: Called


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of a chat.

    The last fields are those of answers that clients send back as they came; they may hold nothing.
    """

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool
    name: str | None = None  # whose words these are, or a tool's function; most templates don't read it
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: _Empty | None = None


def message(told: Message, place: str) -> sampling_pb2.Message:
    """What a message means. Raises InvalidRequest, which names the place."""
    if told.content is None and not told.tool_calls:
        raise InvalidRequest(f"{place}.content", "is missing")
    if told.tool_calls and told.role != "assistant":
        raise InvalidRequest(f"{place}.tool_calls", f"are of the role {told.role[:100]!r}; only an assistant calls")
    if told.tool_call_id and told.role != "tool":
        raise InvalidRequest(
            f"{place}.tool_call_id", f"is of the role {told.role[:100]!r}; only a tool's is read here"
        )
    calls = [
        sampling_pb2.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in told.tool_calls or ()
    ]
    return sampling_pb2.Message(
        role=_SYSTEM.get(told.role, told.role),
        content=_content(told.content or "", place),
        tool_calls=calls,
        tool_call_id=told.tool_call_id or "",
        name=told.name or "",
    )


def _content(content: str | list[Part], place: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_text(part, f"{place}.content[{at}]") for at, part in enumerate(content))


def _text(part: Part, place: str) -> str:
    if part.type != "text":
        raise InvalidRequest(place, f"is of type {part.type[:100]!r}; only text is read here")
    if part.text is None:
        raise InvalidRequest(f"{place}.text", "is missing")
    return part.text
