"""Helm values as YAML: nested mappings of strings are all that a backend gives."""

import json
from collections.abc import Mapping


def as_yaml(values: Mapping[str, object], indent: int = 0) -> str:
    """Block-style YAML of nested mappings; scalars are written as JSON, which YAML reads. Empty is `{}`."""
    if not values:
        return "{}"
    lines = []
    for key, value in values.items():
        head = f"{'  ' * indent}{key}:"
        if isinstance(value, Mapping):
            lines.append(f"{head}\n{as_yaml(value, indent + 1)}" if value else f"{head} {{}}")
        else:
            lines.append(f"{head} {json.dumps(value)}")
    return "\n".join(lines)
