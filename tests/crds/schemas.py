"""The CRD schemas as data, and a walk over their fields."""

from collections.abc import Iterator
from typing import Any

import yaml

from tests.apiserver import ROOT

Schema = dict[str, Any]

FILES = {
    "BaseModel": ROOT / "crds" / "mint.dev_basemodels.yaml",
    "AdapterWave": ROOT / "crds" / "mint.dev_adapterwaves.yaml",
}


def definition(kind: str) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    loaded: dict[str, Any] = yaml.safe_load(FILES[kind].read_text())
    return loaded


def version(kind: str) -> dict[str, Any]:
    """Return the only version of a kind."""
    (only,) = definition(kind)["spec"]["versions"]
    found: dict[str, Any] = only
    return found


def schema(kind: str) -> Schema:
    """Return the OpenAPI schema of a kind."""
    found: Schema = version(kind)["schema"]["openAPIV3Schema"]
    return found


def walk(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield `node` and all nodes below it with their paths, such as ".spec.adapters.names[]", without metadata."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        if (path, name) != ("", "metadata"):
            yield from walk(child, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from walk(node["additionalProperties"], f"{path}{{}}")


def rules(kind: str) -> dict[str, str]:
    """Return the CEL rules of a kind: message -> rule."""
    found = {}
    for _, node in walk(schema(kind)):
        for validation in node.get("x-kubernetes-validations", []):
            found[validation["message"]] = validation["rule"]
    return found
