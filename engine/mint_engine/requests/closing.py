"""Closes the objects in JSON schemas: without a word on other properties, only those come that a schema names. Pure.

JSON Schema allows others then. But a weak model that may go on with other properties does so, with the same ones
again and again until `max_tokens`, and few clients want any: OpenAI's strict schemas have to forbid them, and vLLM's
grammars do.
"""

from collections.abc import Iterator
from typing import Any

from mint_contracts.json_schema import rewritten

# Keywords by which an object's author has decided, or that only other properties may be able to meet.
_DECIDED = frozenset(("additionalProperties", "unevaluatedProperties", "minProperties"))
_COMBINING = ("properties", "patternProperties", "$ref", "anyOf", "oneOf")

Schema = dict[str, Any]


def closed(schema: Schema) -> Schema:
    """Return the schema with its objects closed. Raises RecursionError.

    It is returned as it is if somewhere in it several schemas may describe one object: closed, each would forbid what
    the others name.
    """
    return schema if any(map(_combines, _objects(schema))) else _close(schema)


def _objects(value: Any) -> Iterator[Schema]:
    """Yield every JSON object in a value, whether a schema or not."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(each)


def _combines(schema: Schema) -> bool:
    every = schema.get("allOf")
    return (len(every) if isinstance(every, list) else 0) + sum(name in schema for name in _COMBINING) > 1


def _close(schema: Schema) -> Schema:
    found = {name: rewritten(name, value, _close) for name, value in schema.items()}
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list) or schema.keys() & _DECIDED:
        return found
    suffices = all(isinstance(name, str) and name in named for name in required)
    return found | {"additionalProperties": False} if suffices else found
