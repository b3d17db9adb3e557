"""Where a JSON schema has subschemas (https://json-schema.org/draft/2020-12/json-schema-core#section-10). Pure."""

from collections.abc import Callable
from typing import Any

MAPS = frozenset(
    ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
)  # keywords whose value maps names to schemas
DATA = frozenset(("const", "default", "enum", "examples"))  # values that are not schemas, whatever they look like


def rewritten(keyword: str, value: Any, rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a keyword's value with each schema directly in it rewritten; `rewrite` handles schemas nested deeper."""

    def within(each: Any) -> Any:
        return rewrite(each) if isinstance(each, dict) else each

    if keyword in DATA:
        return value
    if isinstance(value, dict) and keyword in MAPS:
        return {name: within(each) for name, each in value.items()}
    if isinstance(value, list):
        return [within(each) for each in value]
    return within(value)
