"""Asking the API server whether it would accept an object, without storing it."""

import json
from typing import Any

from kubernetes import client

from tests.apiserver import ApiServer

PLURALS = {"BaseModel": "basemodels", "AdapterWave": "adapterwaves"}
NAMESPACE = "default"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` merged into it, object by object; a change to None removes the field."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def resource(kind: str, spec: dict[str, Any], name: str = "sample") -> dict[str, Any]:
    """Return a custom resource of MinT's API group."""
    return {"apiVersion": "mint.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


class Admission:
    """One connection to the API server, for many dry runs."""

    def __init__(self, server: ApiServer) -> None:
        self._objects = client.CustomObjectsApi(server.client())

    def created(self, body: dict[str, Any]) -> Any:
        """Return the object as the API server would store it, with defaults. Raises client.ApiException."""
        place = ("mint.dev", "v1alpha1", NAMESPACE, PLURALS[body["kind"]])
        return self._objects.create_namespaced_custom_object(*place, body, dry_run="All", field_validation="Strict")

    def refusal(self, body: dict[str, Any]) -> str:
        """Return why the object is refused; empty if it would be created."""
        try:
            self.created(body)
        except client.ApiException as error:
            return str(json.loads(error.body or "")["message"])
        return ""
