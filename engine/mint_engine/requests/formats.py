"""Formats that a JSON schema names. Pure.

Whoever doesn't know one takes it for an annotation
(https://json-schema.org/draft/2020-12/json-schema-validation#section-7.2.1). llguidance refuses the schema for it:
pydantic's for bytes, secrets and paths, say, and OpenAPI's.
"""

from typing import Any

from mint_contracts.json_schema import rewritten

KNOWN = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
)  # to llguidance


def known_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without formats that nobody here knows, in all that is within it. Raises RecursionError."""
    return {
        name: rewritten(name, value, known_alone)
        for name, value in schema.items()
        if not (name == "format" and isinstance(value, str) and value not in KNOWN)
    }
