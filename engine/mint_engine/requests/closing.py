"""Closes the objects in JSON schemas: if a schema says nothing of other properties, only those it names may come.

JSON Schema allows others then. But a weak model that may go on with other properties does so, with the same ones
again and again until `max_tokens`, and few clients want any: OpenAI's strict schemas have to forbid them, and vLLM's
grammars do. Pure.
"""

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from mint_contracts.json_schema import DATA, MAPS, rewritten

# Keywords by which an object's author has decided, or that only other properties may be able to meet.
_DECIDED = frozenset(("additionalProperties", "unevaluatedProperties", "minProperties"))
_OWN = _DECIDED | {"properties", "required"}
_APART = ("$defs", "definitions")  # describe something only where they are referred to

Schema = dict[str, Any]


def closed(schema: Schema) -> Schema:
    """Return the schema, as read from JSON, with its objects closed. Raises RecursionError.

    Schemas that may describe one object together stay open: closed, each would forbid what the others name. So does
    all within them, since they may also name the same properties.
    """
    every, shared = list(_all(schema)), set[int]()
    combining = [each for each in every if _combines(each)]
    try:
        if combining and any("$id" in each for each in every[1:]):
            raise LookupError
        for each in combining:
            _share(each, schema, shared)
    except (LookupError, TypeError, ValueError):
        return schema  # references are by ids or anchors, and may lead anywhere
    return _close(schema, shared)


def _all(schema: Schema) -> Iterator[Schema]:
    """Yield a schema and all its subschemas."""
    yield schema
    for name, value in schema.items():
        for each in _within(name, value):
            yield from _all(each)


def _within(keyword: str, value: Any) -> Iterator[Schema]:
    """Yield the schemas directly in a keyword's value."""
    if keyword not in DATA:
        several = value.values() if isinstance(value, dict) and keyword in MAPS else value
        for each in [several] if isinstance(several, dict) else several if isinstance(several, Iterable) else ():
            if isinstance(each, dict):
                yield each


def _combines(schema: Schema) -> bool:
    """Whether several of its parts may describe one object."""
    every = schema.get("allOf")
    others = sum(name in schema for name in ("$ref", "anyOf", "oneOf", "patternProperties"))
    return (len(every) if isinstance(every, list) else 0) + others + bool(schema.keys() & _OWN) > 1


def _share(schema: Schema, root: Schema, shared: set[int]) -> None:
    """Add the ids of a schema and of all within it, also by reference. Raises as `_target`."""
    if id(schema) in shared:
        return
    shared.add(id(schema))
    for name, value in schema.items():
        parts = _within(name, [_target(value, root)] if name == "$ref" else value)
        for each in parts if name not in _APART else ():
            _share(each, root, shared)


def _target(reference: Any, root: Schema) -> Any:
    """Return what a pointer leads to. Raises LookupError, TypeError or ValueError if it is none or leads nowhere."""
    begin, *path = unquote(str(reference)).split("/")
    if begin != "#":
        raise LookupError
    found: Any = root
    for token in path:
        name = token.replace("~1", "/").replace("~0", "~")
        found = found[int(name) if isinstance(found, list) else name]
    return found


def _close(schema: Schema, shared: set[int]) -> Schema:
    found = {name: rewritten(name, value, lambda each: _close(each, shared)) for name, value in schema.items()}
    named, required = schema.get("properties"), schema.get("required", [])
    if id(schema) in shared or not isinstance(named, dict) or not isinstance(required, list):
        return found
    suffices = all(isinstance(name, str) and name in named for name in required)
    return found | {"additionalProperties": False} if suffices and not schema.keys() & _DECIDED else found
