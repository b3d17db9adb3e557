"""Typing a call's arguments that a model writes as bare text, by the function's JSON schema: pure.

Models write values that are texts as they are, and others as JSON, so that only the schema distinguishes the text
"123" from the number.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

Types = tuple[str, ...]  # JSON schema's names of types, in the schema's order; empty if any is allowed

_NULL, _TEXT = "null", "string"
_KINDS: dict[type, tuple[str, ...]] = {
    type(None): (_NULL,),
    str: (_TEXT,),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    list: ("array",),
    dict: ("object",),
}
_PYTHONS = {"True": "true", "False": "false", "None": "null"}  # as some templates write them


def types_of(schema: Mapping[str, Any]) -> dict[str, Types]:
    """Return the types of each parameter in the schema of a function's arguments; none if it is nested too deeply."""
    known: dict[str, Types] = {}
    try:
        return {name: _types(each, schema, known) for name, each in _mapping(schema.get("properties")).items()}
    except RecursionError:
        return {}


def argument(text: str, types: Types) -> str:
    """Return a value that a model wrote as JSON. What is not valid JSON is a text, whatever the schema says."""
    bare = text.strip()
    bare = _PYTHONS.get(bare, bare)
    if bare == _NULL and _NULL in types:
        return bare
    if next((each for each in types if each != _NULL), "") == _TEXT:
        return quoted(text)
    try:
        kinds = _KINDS[type(msgspec.json.decode(bare))]
    except (msgspec.MsgspecError, RecursionError):
        return quoted(text)
    return quoted(text) if _TEXT in types and not {*kinds} & {*types} else bare


def quoted(text: str) -> str:
    """Return a text as JSON."""
    return msgspec.json.encode(text).decode()


def _types(schema: Any, root: Mapping[str, Any], known: dict[str, Types]) -> Types:
    """Return the types that a schema allows; `known` are those of references, each of which is resolved once."""
    schema = _mapping(schema)
    declared = schema.get("type")
    if isinstance(declared, str):
        return (declared,)
    if isinstance(declared, list):
        return tuple(each for each in declared if isinstance(each, str))
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference not in known:
            known[reference] = ()  # if it refers to itself
            known[reference] = _types(_resolved(reference, root), root, known)
        return known[reference]
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(parts := schema.get(word), list):
            every = [_types(each, root, known) for each in parts]
            every = [each for each in every if each] if word == "allOf" else every
            return tuple(dict.fromkeys(name for each in every for name in each)) if all(every) else ()
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = [_KINDS.get(type(each), ()) for each in values] if isinstance(values, list) else []
    return tuple(dict.fromkeys(name for each in kinds for name in each))


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the part of the schema that a reference within it names, or nothing."""
    where, _, pointer = reference.partition("#/")
    found: Any = {} if where else root
    for name in pointer.split("/"):
        found = _mapping(found).get(name.replace("~1", "/").replace("~0", "~"))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
