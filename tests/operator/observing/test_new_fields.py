"""Objects under newer CRDs than the operator's, as after a rollback: each has the new fields that have a default."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec.inspect
import pytest
import yaml

from mint_contracts.resources import AdapterWaveSpec
from mint_operator import kube
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.dirt import Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.new_fields import without_new_defaults
from mint_operator.observing.written import Written
from tests.apiserver import ROOT, ApiServer
from tests.crds.admission import resource
from tests.waiting import block_until, until

TAPE = {"description": "Of a later version.", "type": "integer", "default": 60}
REELS = {
    "description": "Of a later version.",
    "type": "object",
    "default": {"speed": 1},
    "properties": {"speed": {"type": "integer"}, "count": {"type": "integer", "default": 2}},
}
SCHEMA = {
    "properties": {
        "serve": {"properties": {"tape": TAPE, "replicas": {"type": "integer", "default": 1}}},
        "adapters": {"properties": {"sources": {"items": {"properties": {"tape": TAPE}}}}},
        "train": {"properties": {"loss": {"properties": {"reels": REELS}}}},
        "plain": {"type": "string"},
    }
}


@pytest.mark.parametrize(
    ("spec", "rest"),
    [
        ({"serve": {"tape": 60, "replicas": 1}}, {"serve": {"replicas": 1}}),
        ({"serve": {"tape": 61}}, {"serve": {"tape": 61}}),
        ({"plain": "x"}, {"plain": "x"}),
        ({"unheard": 0}, {"unheard": 0}),
        (
            {"adapters": {"sources": [{"name": "a", "tape": 60}, {"name": "b", "tape": 1}]}},
            {"adapters": {"sources": [{"name": "a"}, {"name": "b", "tape": 1}]}},
        ),
        ({"train": {"loss": {"reels": {"speed": 1, "count": 2}}}}, {"train": {"loss": {}}}),
        ({"train": {"loss": {"reels": {"speed": 1, "count": 3}}}},) * 2,
        ({"train": None, "serve": "Device"},) * 2,
    ],
    ids=repr,
)
def test_only_unknown_fields_that_have_their_default_are_left_out(spec: dict[str, Any], rest: dict[str, Any]) -> None:
    assert without_new_defaults(spec, SCHEMA, msgspec.inspect.type_info(AdapterWaveSpec)) == rest


@pytest.fixture
def newer(api_server: ApiServer) -> Iterator[ApiServer]:
    """Give both CRDs a field more for one test: spec.engine.tape, and spec.serve.tape."""
    for plural, part in (("basemodels", "engine"), ("adapterwaves", "serve")):
        definition = yaml.safe_load((ROOT / "crds" / f"mint.dev_{plural}.yaml").read_text())
        [version] = definition["spec"]["versions"]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        spec[part] = copy.deepcopy(spec[part])
        spec[part]["properties"]["tape"] = TAPE
        api_server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(definition))
    yield api_server
    api_server.apply_crds()
    block_until(lambda: "tape" not in api_server.kubectl("get", "--raw", "/openapi/v3/apis/mint.dev/v1alpha1"))


async def test_what_newer_crds_add_by_default_can_be_read_and_what_somebody_has_set_cannot(
    newer: ApiServer, namespace: str
) -> None:
    api = kube.connect(str(newer.kubeconfig))

    async def served() -> bool:
        try:
            text = str(await api.schemas())
        except kube.KubeError:  # its schemas come a moment after a new API server
            return False
        return text.count("'tape'") == len(kube.OWN)

    await until(served)
    base = {"source": {"uri": "pvc://models/smollm2"}}
    wave = {"baseModelRef": {"name": "sample"}, "adapters": {"names": ["acme/bot"]}}
    for body in (
        resource("BaseModel", base),
        resource("BaseModel", base | {"engine": {"tape": 70}}) | {"metadata": {"name": "taped"}},
        resource("AdapterWave", wave),
        resource("AdapterWave", wave | {"serve": {"tape": 70}}) | {"metadata": {"name": "taped"}},
    ):
        newer.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(body))
    view = ClusterView(api, [namespace], Feed(), Written(), secrets=False, policies=False)
    await view.refresh(frozenset({Part.BASES, Part.WAVES}))
    found = {("BaseModel", each.meta.name): each.defect for each in view.bases.values()}
    found |= {("AdapterWave", each.meta.name): each.defect for each in view.waves}
    assert {key for key, defect in found.items() if not defect} == {
        ("BaseModel", "sample"),
        ("AdapterWave", "sample"),
    }
    assert all("unknown field `tape`" in found[kind, "taped"] for kind in ("BaseModel", "AdapterWave"))
    api.close()
