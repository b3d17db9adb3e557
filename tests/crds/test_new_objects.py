"""The status of an object between its creation and the operator's first update."""

import json
from typing import Any

import pytest

from tests.apiserver import ApiServer
from tests.crds.admission import PLURALS, resource

SPECS: dict[str, dict[str, Any]] = {
    "BaseModel": {"source": {"uri": "pvc://models/smollm2"}},
    "AdapterWave": {"baseModelRef": {"name": "smollm2"}, "adapters": {"names": ["acme/bot"]}},
}


@pytest.mark.parametrize("kind", PLURALS)
def test_a_new_object_does_not_look_ready(api_server: ApiServer, kind: str) -> None:
    """kstatus, which Flux uses, considers an object without conditions and observedGeneration ready."""
    namespace = api_server.namespace(f"new-{kind.lower()}")
    api_server.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(resource(kind, SPECS[kind])))
    found = json.loads(api_server.kubectl("get", PLURALS[kind], "sample", "-n", namespace, "-o", "json"))
    assert found["status"]["observedGeneration"] < found["metadata"]["generation"]
    assert found["status"].get("conditions") is None
