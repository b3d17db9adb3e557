"""Fields that only newer CRDs define: an object is read without those that have their default. Pure.

The API server gives every object the defaults of its CRDs. These are newer than the operator after a rollback, and
before an upgrade. A field that somebody has set otherwise stays, and the object cannot be read.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import inspect

Schema = Mapping[str, Any]


def without_new_defaults(value: Any, schema: Schema, declared: inspect.Type) -> Any:
    """Return a value without the fields that its declared type lacks, where they have the schema's default."""
    declared = _part(declared)
    if isinstance(declared, inspect.StructType) and isinstance(value, dict):
        known, parts = {each.encode_name: each.type for each in declared.fields}, schema.get("properties", {})
        return {
            name: without_new_defaults(each, parts.get(name, {}), known[name]) if name in known else each
            for name, each in value.items()
            if name in known or not _is_default(each, parts.get(name, {}))
        }
    if isinstance(declared, inspect.ListType) and isinstance(value, list):
        return [without_new_defaults(each, schema.get("items", {}), declared.item_type) for each in value]
    return value


def _part(declared: inspect.Type) -> inspect.Type:
    """Return the only type with parts of a union, as of a struct that may be absent."""
    if isinstance(declared, inspect.UnionType):
        return next((each for each in declared.types if isinstance(each, inspect.StructType)), declared)
    return declared


def _is_default(value: Any, schema: Schema) -> bool:
    return "default" in schema and value == _completed(schema["default"], schema)


def _completed(value: Any, schema: Schema) -> Any:
    """Return a default with those of its own fields, as the API server completes it."""
    if not isinstance(value, dict):
        return value
    parts = {name: part for name, part in schema.get("properties", {}).items() if name in value or "default" in part}
    return value | {name: _completed(value.get(name, part.get("default")), part) for name, part in parts.items()}
