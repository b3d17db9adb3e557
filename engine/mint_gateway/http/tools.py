"""The functions that a chat may call, in OpenAI's format, and the constraint that they put on an answer: pure.

If a function must be called, the answer is constrained to a JSON schema: of the one function's arguments or, as in
vLLM, of an array of `{"name": ..., "parameters": {...}}`. Otherwise the model writes calls in its own format.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat
from mint_gateway.http.arguments import types_of
from mint_gateway.http.call_forms import CALL_FORMS
from mint_gateway.http.calls import Leading, Listed, Once, Reader, Reading, Single
from mint_gateway.http.marked import Functions, Marked
from mint_gateway.http.schemas import moved

TAG_END = "\n</tool_call>"  # no string in a call in Hermes' form can contain it: JSON escapes line ends

# Readers of a model's own call format, by its chat template's format; the first is the default.
_READERS: dict[int, Callable[[Functions], Reader]] = {
    form: partial(Marked, marks) for form, marks in CALL_FORMS.items()
}
_READERS |= {
    Chat.LLAMA: lambda functions: Leading(functions, ("<|python_tag|>",), ";", "parameters"),
    Chat.MISTRAL: lambda functions: Leading(functions, ("[TOOL_CALLS]", "["), ",]", "arguments"),
}
FORMS = (*(Chat.Calls.ValueType(form) for form in _READERS), Chat.HARMONY)

_Json = dict[str, Any]
_NOTHING: _Json = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function. If one must be called, its schema is enforced whatever `strict` says."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
    description: str | None = None
    parameters: _Json | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A tool; only functions are supported."""

    function: Function


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one function that must be called."""

    function: Name


Choice = Literal["none", "auto", "required"] | Chosen


class Tools(msgspec.Struct, frozen=True):
    """The functions of one request and how to call them. Names are unique, and a chosen one is among them."""

    functions: Sequence[Function] = ()
    choice: Choice = "none"
    parallel: bool = True

    @property
    def held(self) -> bool:
        """Whether the answer must consist of calls."""
        return self.choice not in ("none", "auto")

    @property
    def functions_json(self) -> str:
        """The functions as JSON for gRPC's Chat; empty if there are none."""
        every: list[_Json] = []
        for each in self.functions:
            function: _Json = {"name": each.name}
            function |= {} if each.description is None else {"description": each.description}
            every.append({"type": "function", "function": function | {"parameters": each.parameters or _NOTHING}})
        return _written(every) if every else ""

    @property
    def named(self) -> "Tools":
        """The same with only the functions' names, which with the request suffice for reading calls."""
        functions = tuple(Function(each.name) for each in self.functions)
        return Tools(functions, self.choice, self.parallel) if functions else self

    @property
    def schema(self) -> str:
        """The JSON schema, as text, of an answer that must consist of calls. Raises InvalidRequest."""
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

    def reading(self, form: "Chat.Calls.ValueType", written: str) -> Reading | None:
        """Return how to read calls from an answer; None if it cannot have any.

        `form` is the format of the base's chat template, for calls in the model's own format. Engines of earlier
        versions know only Hermes' and do not send it. `written` is the request's `functions_json`.
        """
        if self.choice == "none":
            return None
        if self.choice == "auto":
            if form == Chat.HARMONY:
                return Reading(names=frozenset(each.name for each in self.functions), once=not self.parallel)
            form = form or Chat.HERMES
            typed = form in CALL_FORMS and CALL_FORMS[form].key != ""  # others write all arguments as JSON
            types = _types(written) if typed else {}
            functions = {each.name: types.get(each.name, {}) for each in self.functions}
            reader = _READERS[form]
            made = partial(reader, functions) if self.parallel else lambda: Once(reader(functions))
            return Reading(made, short_ids=form == Chat.MISTRAL)
        if self.choice == "required":
            return Reading(Listed)
        return Reading(partial(Single, self.choice.function.name))


NONE = Tools()


def checked(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> Tools:
    """Return a request's tools. Raises InvalidRequest."""
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


def _types(written: str) -> Functions:
    """Return the types of each function's parameters."""
    every = [tool["function"] for tool in msgspec.json.decode(written)]
    return {each["name"]: types_of(each["parameters"]) for each in every}


def _called(name: str) -> _Json:
    """Return the schema of one function's call in the array."""
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
