"""Formats that a JSON schema names. Pure.

Whoever doesn't know one takes it for an annotation
(https://json-schema.org/draft/2020-12/json-schema-validation#section-7.2.1). llguidance refuses the schema for it:
pydantic's for bytes, secrets and paths, say, and OpenAPI's.
"""

from typing import Any

KNOWN = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
)  # to llguidance

_MAPS = frozenset(
    ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
)  # of schemas, by name
_DATA = frozenset(("const", "default", "enum", "examples"))  # no schemas, whatever they look like


def known_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without formats that nobody here knows, in all that is within it. Raises RecursionError."""
    known = dict[str, Any]()
    for name, value in schema.items():
        if name == "format" and isinstance(value, str) and value not in KNOWN:
            continue
        if name in _DATA:
            known[name] = value
        elif isinstance(value, dict) and name in _MAPS:
            known[name] = {of: _within(each) for of, each in value.items()}
        elif isinstance(value, list):
            known[name] = [_within(each) for each in value]
        else:
            known[name] = _within(value)
    return known


def _within(value: Any) -> Any:
    return known_alone(value) if isinstance(value, dict) else value
