"""Helm values as YAML: a backend has only nested mappings of strings."""

import json
from collections.abc import Mapping


def as_yaml(values: Mapping[str, object], indent: int = 0) -> str:
    """Return nested mappings as block-style YAML; scalars are written as JSON, which is valid YAML. Empty: `{}`."""
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
