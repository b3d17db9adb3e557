"""Removes unknown formats from JSON schemas. Pure.

A format that an implementation does not know is only an annotation
(https://json-schema.org/draft/2020-12/json-schema-validation#section-7.2.1), but llguidance refuses the schema:
for example pydantic's formats for bytes, secrets and paths, and OpenAPI's.
"""

from typing import Any

from mint_contracts.json_schema import rewritten

KNOWN = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
)  # the formats that llguidance knows


def known_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without unknown formats, at any depth. Raises RecursionError."""
    return {
        name: rewritten(name, value, known_alone)
        for name, value in schema.items()
        if not (name == "format" and isinstance(value, str) and value not in KNOWN)
    }
