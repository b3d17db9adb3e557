"""The operator's view of the API server's objects, as reported by the watch."""

from typing import Any

import msgspec
import pytest
from kubernetes import client

from mint_operator.kube import Kube
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.feed import Feed, News
from mint_operator.observing.written import Written
from mint_operator.planning.snapshot import ObservedBase, ObservedWave

READABLE: dict[str, dict[str, Any]] = {
    "AdapterWave": {"baseModelRef": {"name": "smol"}, "adapters": {"names": ["a/b"]}},
    "BaseModel": {"source": {"uri": "pvc://m/s"}},
}
EDITED: dict[str, dict[str, Any]] = {"AdapterWave": {"priority": 7}, "BaseModel": {"source": {"uri": "pvc://m/t"}}}


class Seen:
    """A view of one object, which is sighted repeatedly."""

    def __init__(self, kind: str) -> None:
        self.kind, self.feed, self.version = kind, Feed(), 0
        self.view = ClusterView(
            Kube(client.ApiClient()), ["team"], self.feed, Written(), secrets=False, policies=False
        )

    async def sight(self, spec: dict[str, Any]) -> ObservedBase | ObservedWave:
        self.version += 1
        meta = {"namespace": "team", "name": "one", "uid": "u", "generation": 1, "resourceVersion": str(self.version)}
        self.feed.put("u", News(self.kind, msgspec.json.encode({"metadata": meta, "spec": spec})))
        await self.view.refresh(frozenset())
        [found] = self.view.waves if self.kind == "AdapterWave" else self.view.bases.values()
        return found


@pytest.mark.parametrize("kind", READABLE)
async def test_a_spec_that_becomes_readable_with_the_definitions_alone_is_what_it_says(kind: str) -> None:
    """After a rollback installs older definitions, the API server leaves out fields that they do not have."""
    seen, readable = Seen(kind), READABLE[kind]
    first = await seen.sight(readable)
    assert (await seen.sight(readable)).spec is first.spec, "of which nothing changed is the same object"
    assert (await seen.sight(readable | {"tape": "long"})).spec != first.spec
    last = await seen.sight(readable)
    assert (last.defect, last.spec) == ("", first.spec)


@pytest.mark.parametrize("kind", READABLE)
async def test_another_spec_of_the_same_generation_is_what_it_says(kind: str) -> None:
    """After the API server's store was restored from a backup, an edit gets a generation that there was before."""
    seen, readable = Seen(kind), READABLE[kind]
    first = await seen.sight(readable)
    assert (await seen.sight(readable | EDITED[kind])).spec != first.spec
    assert (await seen.sight(readable)).spec == first.spec
