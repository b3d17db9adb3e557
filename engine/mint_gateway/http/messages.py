"""Messages of a chat, as OpenAI's clients write them, and as gRPC has them: pure.

They are history: answers come back with all that whoever gave them, or the client, has put into them (`parsed`,
`reasoning_content`, `cache_control`). No model is told of that, so what is not read here is passed over; what asks
for something that isn't done is refused.
"""

from typing import Any

import msgspec

from mint_contracts import sampling_pb2
from mint_contracts.errors import InvalidRequest

# OpenAI's newer clients call a system's message so. Most templates pass over a role that they do not know, in
# silence; one that knows both means the same by them.
_SYSTEM = {"developer": "system"}


class Part(msgspec.Struct, frozen=True):
    """A piece of a message; only text is read, and what others hold instead is refused by their type."""

    text: str | None = None
    type: str = "text"
    refusal: Any = None  # text, of the type that is named so


class Called(msgspec.Struct, frozen=True):
    """Which function was called, and with what: a JSON object as text."""

    name: str
    arguments: str


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
    audio: None = None
    function_call: None = None
    prefix: bool | None = None  # the answer goes on with this message, as Mistral's and DeepSeek's clients say it
    partial: bool | None = None  # and Qwen's


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
    for name, value in (("prefix", sent.prefix), ("partial", sent.partial)):
        if value:
            raise InvalidRequest(f"{place}.{name}", "is not supported; leave it out")
    calls = [
        sampling_pb2.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in sent.tool_calls or ()
    ]
    return sampling_pb2.Message(
        role=_SYSTEM.get(sent.role, sent.role),
        content=_content(sent.content or "", place) + (sent.refusal or ""),
        tool_calls=calls,
        tool_call_id=sent.tool_call_id or "",
        name=sent.name or "",
    )


def _content(content: str | list[Part], place: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_text(part, f"{place}.content[{at}]") for at, part in enumerate(content))


def _text(part: Part, place: str) -> str:
    if part.type == "refusal" and isinstance(part.refusal, str):
        return part.refusal
    if part.type != "text":
        raise InvalidRequest(place, f"is of type {part.type[:100]!r}; only text is supported")
    if part.text is None:
        raise InvalidRequest(f"{place}.text", "is missing")
    return part.text
