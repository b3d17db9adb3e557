"""The admission policy in docs/platform.md that keeps a tenant's waves to its own names and folder."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.apiserver import ROOT, ApiServer, KubectlError
from tests.crds.admission import resource
from tests.docs.pages import blocks
from tests.waiting import block_until

BASE = {"name": "llama", "namespace": "models"}
TRAIN = {"reward": {"exactMatch": {}}, "dataset": {"uri": "s3://tenants/acme/data.jsonl"}}
OWN = "s3://tenants/acme/bot"
FILE = "s3://tenants/acme/list.jsonl"


def refusal(server: ApiServer, namespace: str, spec: Mapping[str, Any]) -> str:
    """Return why a wave is refused in a namespace; empty if it would be created."""
    body = json.dumps(resource("AdapterWave", {"baseModelRef": BASE, **spec}))
    try:
        server.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=body)
    except KubectlError as error:
        return str(error)
    return ""


def policies(**each: object) -> dict[str, Any]:
    return {"train": TRAIN | {"policies": {"list": [{"name": "acme/bot", **each}]}}}


@pytest.fixture(scope="module")
def server(api_server: ApiServer) -> ApiServer:
    [policy] = [each for each in blocks(ROOT / "docs" / "platform.md") if "ValidatingAdmissionPolicyBinding" in each]
    api_server.kubectl("apply", "-f", "-", stdin=policy)
    for name in ("acme", "models"):
        api_server.namespace(name)
    api_server.kubectl("label", "namespace", "acme", "mint.dev/tenant=true")
    block_until(lambda: bool(refusal(api_server, "acme", {"adapters": {"names": ["rival/bot"]}})))
    return api_server


@pytest.mark.parametrize(
    "spec",
    [
        {"adapters": {"names": ["acme/bot", "acme/bot@r2"]}},
        {"adapters": {"sources": [{"name": "acme/bot", "uri": OWN}]}},
        {"adapters": {"selector": {"prefix": "acme/support-", "labels": {"language": "en"}}}},
        {"train": TRAIN | {"policies": {"count": 8}}},
        {"train": TRAIN | {"policies": {"count": 8, "template": {"namePrefix": "x", "startFrom": "acme/bot"}}}},
        policies(startFrom="acme/base", dataset={"lines": ['{"prompt": "x"}']}),
    ],
    ids=str,
)
def test_a_tenants_waves_of_its_own_adapters_are_accepted(server: ApiServer, spec: dict[str, Any]) -> None:
    assert refusal(server, "acme", spec) == ""


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"adapters": {"names": ["acme/bot", "rival/bot"]}}, "names of adapters must begin with acme/"),
        ({"adapters": {"names": ["acme-2/bot"]}}, "names of adapters"),
        ({"adapters": {"sources": [{"name": "rival/bot", "uri": OWN}]}}, "names of adapters"),
        (
            {"adapters": {"sources": [{"name": "acme/bot", "uri": "s3://tenants/rival/bot"}]}},
            "must be in s3://tenants/",
        ),
        ({"adapters": {"selector": {"prefix": "a"}}}, "names of adapters"),
        ({"adapters": {"selector": {"labels": {"language": "en"}}}}, "names of adapters"),
        ({"adapters": {"manifest": FILE}}, "manifests may list any name"),
        ({"train": TRAIN | {"policies": {"manifest": FILE}}}, "manifests may list any name"),
        ({"train": TRAIN | {"policies": {"list": [{"name": "rival/bot"}]}}}, "names of adapters"),
        ({"train": TRAIN | {"policies": {"count": 2, "template": {"startFrom": "rival/bot"}}}}, "names of adapters"),
        (policies(startFrom="rival/bot"), "names of adapters"),
        (policies(dataset={"uri": "s3://tenants/rival/data.jsonl"}), "sources and data sets"),
        ({"train": policies()["train"] | {"dataset": {"uri": "pvc://rival/data.jsonl"}}}, "sources and data sets"),
        (
            {"train": policies()["train"] | {"evaluation": {"dataset": {"uri": "pvc://rival/data.jsonl"}}}},
            "sources and data sets",
        ),
    ],
    ids=str,
)
def test_a_tenants_wave_of_anothers_names_or_files_is_refused(
    server: ApiServer, spec: dict[str, Any], problem: str
) -> None:
    assert problem in refusal(server, "acme", spec)


def test_other_namespaces_are_not_restricted(server: ApiServer) -> None:
    assert refusal(server, "models", {"adapters": {"names": ["rival/bot"]}}) == ""
