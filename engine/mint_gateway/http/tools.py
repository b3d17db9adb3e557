"""Functions that a chat may call, as OpenAI's clients name them, and what an answer then must be: pure.

Where one must be called, the answer is held to a JSON schema: of the one function's arguments, or, as vLLM has it, of
an array of `{"name": ..., "parameters": {...}}`. Else the model writes calls in its own way.
"""

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat
from mint_gateway.http.calls import Leading, Listed, Once, Reader, Reading, Single, Tagged
from mint_gateway.http.schemas import moved

TAG_END = "\n</tool_call>"  # no string within a call holds it: JSON escapes a line's end

# How a model that is left to its own way calls, by the form that its template has: the first of these, or another.
_READERS: dict[int, Callable[[Collection[str]], Reader]] = {
    Chat.HERMES: Tagged,
    Chat.LLAMA: lambda names: Leading(names, ("<|python_tag|>",), ";", "parameters"),
    Chat.MISTRAL: lambda names: Leading(names, ("[TOOL_CALLS]", "["), ",]", "arguments"),
}
FORMS = tuple(Chat.Calls.ValueType(form) for form in _READERS)

_Json = dict[str, Any]
_NOTHING: _Json = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function. Where one must be called, its schema is held to whatever `strict` says."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
    description: str | None = None
    parameters: _Json | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """What can be called: functions alone."""

    function: Function


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which function."""

    name: str


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one function that must be called."""

    function: Name


Choice = Literal["none", "auto", "required"] | Chosen


class Tools(msgspec.Struct, frozen=True):
    """The functions of one request, and how they are to be called: of no name twice, and a chosen one among them."""

    functions: Sequence[Function] = ()
    choice: Choice = "none"
    parallel: bool = True

    @property
    def held(self) -> bool:
        """Whether an answer can only be calls."""
        return self.choice not in ("none", "auto")

    @property
    def functions_json(self) -> str:
        """The functions as gRPC's Chat has them; empty where there are none."""
        every: list[_Json] = []
        for each in self.functions:
            function: _Json = {"name": each.name}
            function |= {} if each.description is None else {"description": each.description}
            every.append({"type": "function", "function": function | {"parameters": each.parameters or _NOTHING}})
        return _written(every) if every else ""

    @property
    def schema(self) -> str:
        """What an answer that can only be calls must be, as JSON. Raises InvalidRequest."""
        schemas = {each.name: {"type": "object"} | (each.parameters or _NOTHING) for each in self.functions}
        if isinstance(self.choice, Chosen):
            return _written(schemas[self.choice.function.name])
        try:
            every = {name: moved(schema, f"#/$defs/{name}") for name, schema in schemas.items()}
        except RecursionError:
            raise InvalidRequest("tools", "are nested too deeply") from None
        except ValueError as error:
            raise InvalidRequest("tools", f"have an $id or a $ref that is not a valid URI: {error}") from None
        array: _Json = {"$defs": every, "type": "array", "items": {"anyOf": [_called(name) for name in schemas]}}
        return _written(array | {"minItems": 1} | ({} if self.parallel else {"maxItems": 1}))

    def reading(self, form: "Chat.Calls.ValueType") -> Reading | None:
        """How calls are read out of an answer; None where it has none.

        `form` is that of the base's template, where a model calls in its own way; an engine of an earlier version
        knows Hermes' alone, and tells of none.
        """
        if self.choice == "none":
            return None
        if self.choice == "auto":
            names, parallel = frozenset(each.name for each in self.functions), self.parallel
            reader = _READERS[form or Chat.HERMES]
            made = partial(reader, names) if parallel else lambda: Once(reader(names))
            return Reading(made, short_ids=form == Chat.MISTRAL)
        if self.choice == "required":
            return Reading(Listed)
        return Reading(partial(Single, self.choice.function.name))


NONE = Tools()


def checked(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> Tools:
    """What a request says of tools. Raises InvalidRequest."""
    functions = [tool.function for tool in tools]
    names: set[str] = set()
    for place, each in enumerate(functions):
        if each.name in names:
            raise InvalidRequest(f"tools[{place}]", f"has the name of another tool, {each.name}")
        if each.parameters and each.parameters.get("type", "object") != "object":
            raise InvalidRequest(f"tools[{place}].function.parameters", 'must be a schema of type "object"')
        names.add(each.name)
    if isinstance(choice, Chosen) and choice.function.name not in names:
        raise InvalidRequest("tool_choice", f"names {choice.function.name[:100]!r}, which is not one of the tools")
    if choice == "required" and not names:
        raise InvalidRequest("tool_choice", "is required, but there are no tools")
    return Tools(functions, choice or "auto", parallel) if functions else NONE


def _called(name: str) -> _Json:
    """The schema of one function's call within an array."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _written(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest("tools", "are nested too deeply") from None
