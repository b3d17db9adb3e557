"""The operator's view of the API server's objects, as reported by the watch."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from kubernetes import client

from mint_operator.kube import Kube
from mint_operator.observing import decode
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.feed import Feed, News
from mint_operator.observing.written import Written
from mint_operator.planning.snapshot import ObservedBase, ObservedWave

READABLE: dict[str, dict[str, Any]] = {
    "AdapterWave": {"baseModelRef": {"name": "smol"}, "adapters": {"names": ["a/b"]}},
    "BaseModel": {"source": {"uri": "pvc://m/s"}},
}
EDITED: dict[str, dict[str, Any]] = {"AdapterWave": {"priority": 7}, "BaseModel": {"source": {"uri": "pvc://m/t"}}}


ENDS_BY = datetime(2026, 1, 1, 12, tzinfo=UTC)
TERMINATING = {
    "metadata": {
        "namespace": "team",
        "name": "smol-1",
        "uid": "p",
        "resourceVersion": "1",
        "labels": {"mint.dev/base-model": "smol"},
        "deletionTimestamp": ENDS_BY.strftime("%Y-%m-%dT%H:%M:%SZ"),
    },
    "spec": {"nodeName": "rack-7"},
    "status": {"phase": "Running"},
}


class Seen:
    """A view of one object, which is sighted repeatedly."""

    def __init__(self, kind: str) -> None:
        self.kind, self.feed, self.version = kind, Feed(), 0
        nobody = client.ApiClient(client.Configuration(host="http://127.0.0.1:9"))
        self.view = ClusterView(Kube(nobody), ["team"], self.feed, Written(), secrets=False, policies=False)

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


async def test_a_pod_that_does_not_end_is_in_trouble_once_its_node_should_have_ended_it() -> None:
    """When a node dies, Kubernetes deletes its pods, but they stay, and StatefulSets make no others."""
    feed = Feed()
    view = ClusterView(Kube(client.ApiClient()), ["team"], feed, Written(), secrets=False, policies=False)
    feed.put("p", News("Pod", msgspec.json.encode(TERMINATING)))
    view.clock = lambda: ENDS_BY.timestamp() + decode.OVERDUE_S - 1
    await view.refresh(frozenset())
    [ending] = view.pods["team/smol"]
    view.clock = lambda: ENDS_BY.timestamp() + decode.OVERDUE_S
    feed.put("p", News("Pod", msgspec.json.encode(TERMINATING)))  # as anything arranges them anew
    await view.refresh(frozenset())
    [stuck] = view.pods["team/smol"]
    assert ending.trouble is None
    assert stuck.trouble is not None
    assert stuck.trouble.reason == "Terminating"
    assert stuck.trouble.message.startswith("its pod was to end, but node rack-7 does not report that it has")


def test_no_node_is_said_to_be_silent_about_a_pod_that_has_none() -> None:
    _, pod = decode.engine_pod(msgspec.json.encode(TERMINATING | {"spec": {}}))
    assert pod.terminating
    assert decode.overdue(pod, ENDS_BY.timestamp() + 2 * decode.OVERDUE_S) is None
