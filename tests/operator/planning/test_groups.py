"""Engines over several nodes: their objects are accepted by real APIs, and a missing API is reported."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts.records import Failure
from mint_contracts.resources import EngineSpec, Resources
from mint_contracts.settings import ENGINE_SETTINGS, RANKS_PORT, EngineSettings
from mint_operator.observing import decode
from mint_operator.planning.engines import engine_name, expected
from mint_operator.planning.manifests import SETTINGS_DIGEST, Manifest, render, settings_digest
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import Child, EnginePod, ObservedBase, Snapshot
from tests.apiserver import ApiServer, KubectlError, serve
from tests.operator.leader_worker_set import serve_groups
from tests.operator.stage import base_model, staged
from tests.operator.worlds import NOW, RELEASE, base

Body = dict[str, Any]

GUARDED = msgspec.structs.replace(RELEASE, gateway_namespace="mint", gateway_labels={"a": "gateway"})


def spread_over(nodes: int, **fields: Any) -> ObservedBase:
    """Return a base whose engines each span `nodes` nodes."""
    found = base()
    engine = EngineSpec(nodes=nodes, **{"tensor_parallel_size": 2 * nodes} | fields)
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, engine=engine))


def rendered(of: ObservedBase, engines: int = 2, partition: int = 0) -> dict[str, Body]:
    return {each.kind: each.body for each in manifests(of, engines, partition)}


def manifests(of: ObservedBase, engines: int = 2, partition: int = 0) -> tuple[Manifest, ...]:
    return render(of, GUARDED, engines, partition)


def templates(of: ObservedBase) -> tuple[Body, Body]:
    template = rendered(of)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return template["leaderTemplate"], template["workerTemplate"]


def taken_settings(container: Body) -> EngineSettings:
    """Remove the engine settings from a container's environment, and return them."""
    [variable] = [each for each in container["env"] if each["name"] == ENGINE_SETTINGS]
    container["env"].remove(variable)
    return msgspec.json.decode(variable["value"], type=EngineSettings)


def selects(selector: Body, template: Body) -> bool:
    return bool(selector["matchLabels"].items() <= template["metadata"]["labels"].items())


def test_several_nodes_are_a_group_and_one_is_a_pod_as_before() -> None:
    one, three = rendered(spread_over(1)), rendered(spread_over(3), engines=2, partition=1)
    assert ("StatefulSet" in one, "LeaderWorkerSet" in one) == (True, False)
    assert ("StatefulSet" in three, "LeaderWorkerSet" in three) == (False, True)
    spec = three["LeaderWorkerSet"]["spec"]
    assert spec["replicas"] == 2  # counts groups
    assert spec["leaderWorkerTemplate"]["size"] == 3
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {
        "partition": 1,
        "maxUnavailable": 1,
        "maxSurge": 0,
    }
    [owner] = three["LeaderWorkerSet"]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"]) == ("BaseModel", True)


def test_a_leader_is_the_pod_that_an_engine_of_one_node_is() -> None:
    """It differs only in the port for its other nodes, and in the `nodes` setting."""
    leader, _ = templates(spread_over(2))
    alone = rendered(spread_over(1, tensor_parallel_size=4))["StatefulSet"]["spec"]["template"]
    assert leader["metadata"]["labels"] == alone["metadata"]["labels"]
    [ours], [theirs] = leader["spec"].pop("containers"), alone["spec"].pop("containers")
    assert leader["spec"] == alone["spec"]
    assert ours.pop("ports") == [
        *theirs.pop("ports"),
        {"name": "ranks", "containerPort": RANKS_PORT, "protocol": "TCP"},
    ]
    settings, alike = taken_settings(ours), taken_settings(theirs)
    assert (settings.nodes, alike.nodes) == (2, 1)
    assert msgspec.structs.replace(settings, nodes=1) == alike
    assert ours == theirs


def test_only_leaders_are_asked() -> None:
    leader, worker = templates(spread_over(2))
    found = rendered(spread_over(2))
    selector = {"matchLabels": found["Service"]["spec"]["selector"]}
    assert (selects(selector, leader), selects(selector, worker)) == (True, False)
    [container] = worker["spec"]["containers"]
    assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & container.keys()
    # Everything else in a worker equals its leader: command, settings, password, volumes, limits, security.
    [leading] = leader["spec"]["containers"]
    assert container == {key: leading[key] for key in container}
    (spread,) = worker["spec"]["topologySpreadConstraints"]
    assert selects(spread["labelSelector"], worker)
    assert not selects(spread["labelSelector"], leader)


def test_leaders_and_workers_are_each_spread_as_wished_and_run_where_wished() -> None:
    zones = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    racks = zones | {"topologyKey": "rack", "labelSelector": {"matchLabels": {"app": "x"}}}
    affinity: Body = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    of = spread_over(2, topology_spread_constraints=[zones, racks], affinity=affinity)
    for template, other in (templates(of), templates(of)[::-1]):
        nodes, own, theirs = template["spec"]["topologySpreadConstraints"]
        assert (nodes["topologyKey"], own["topologyKey"]) == ("kubernetes.io/hostname", zones["topologyKey"])
        for each in (nodes, own):
            assert selects(each["labelSelector"], template)
            assert not selects(each["labelSelector"], other)
        assert theirs == racks
        assert template["spec"]["affinity"] == affinity


def test_the_budget_and_the_guard_hold_for_all_of_a_group() -> None:
    found = rendered(spread_over(2))
    for template in templates(spread_over(2)):
        assert selects(found["PodDisruptionBudget"]["spec"]["selector"], template)
        assert selects(found["NetworkPolicy"]["spec"]["podSelector"], template)
        *_, peers = found["NetworkPolicy"]["spec"]["ingress"]
        assert selects(peers["from"][0]["podSelector"], template)
        assert "ports" not in peers
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert len(rendered(spread_over(1))["NetworkPolicy"]["spec"]["ingress"]) == 2  # no other ingress is allowed


def test_each_node_gives_the_devices_of_its_own_ranks() -> None:
    of = spread_over(3, device="cuda", tensor_parallel_size=24, resources=Resources(limits={"memory": "1Ti"}))
    for template in templates(of):
        [container] = template["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "memory": "1Ti"}


def test_ranks_of_one_node_have_memory_to_meet_in() -> None:
    def mounted(template: Body) -> bool:
        [container] = template["spec"]["containers"]
        return "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}

    assert all(mounted(each) for each in templates(spread_over(2, device="cuda", tensor_parallel_size=4)))
    # With one rank per node, ranks only communicate over the network.
    assert not any(mounted(each) for each in templates(spread_over(2, device="cuda", tensor_parallel_size=2)))


def test_all_pods_of_a_group_start_anew_when_what_they_are_made_from_changes() -> None:
    two, four = spread_over(2, tensor_parallel_size=4), spread_over(4, tensor_parallel_size=4)
    for of in (two, four):
        for template in templates(of):
            assert template["metadata"]["annotations"][SETTINGS_DIGEST] == settings_digest(of, GUARDED)
    assert settings_digest(two, GUARDED) != settings_digest(four, GUARDED)


def test_workers_are_no_engines() -> None:
    """With pods named as by the API, only leaders are found as engines, by their ordinals."""
    pods = [EnginePod(name=name, ip="10.0.0.1", ready=True) for name in ("smol-0", "smol-0-1", "smol-1", "smol-1-1")]
    found = expected("smol", 2, pods, None)
    assert [engine.pod.name for engine in found] == [engine_name("smol", 0), engine_name("smol", 1)]


def statefulset(name: str, template: Body, labels: dict[str, str]) -> str:
    """Return the StatefulSet that the API's controller (v0.9.0) makes from a template, with its own labels."""
    own = copy.deepcopy(template)
    own["metadata"]["labels"] |= labels
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": name},
            "spec": {"serviceName": "smol", "selector": {"matchLabels": labels}, "template": own},
        }
    )


def test_real_api_servers_accept_a_groups_objects(api_server: ApiServer) -> None:
    """All fields pass strict validation, and a wrong one would be noticed."""
    namespace = api_server.namespace("groups")
    serve_groups(api_server)

    def take(body: str) -> str:
        return api_server.kubectl(
            "apply", "-n", namespace, "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=body
        )

    for manifest in manifests(spread_over(2, device="cuda")):
        body = manifest.body | {"metadata": manifest.body["metadata"] | {"namespace": namespace}}
        assert "serverside-applied" in take(json.dumps(body))
    leader, worker = templates(spread_over(2))
    name = "leaderworkerset.sigs.k8s.io/name"
    assert take(statefulset("smol", leader, {name: "smol", "leaderworkerset.sigs.k8s.io/worker-index": "0"}))
    assert take(statefulset("smol-0", worker, {name: "smol", "leaderworkerset.sigs.k8s.io/group-index": "0"}))
    wrong = rendered(spread_over(2))["LeaderWorkerSet"]
    wrong["metadata"]["namespace"] = namespace
    wrong["spec"]["leaderWorkerTemplate"]["sizes"] = 2
    with pytest.raises(KubectlError, match="sizes"):
        take(json.dumps(wrong))


def over_two_nodes(**engine: Any) -> Body:
    return base_model(engine={"tensorParallelSize": 4, "nodes": 2, "replicas": {"min": 1, "max": 2}} | engine)


def test_the_planner_makes_groups_and_counts_their_engines() -> None:
    raw = over_two_nodes()
    raw["metadata"] |= {"namespace": "team", "uid": "u"}
    of = decode.base_model(json.dumps(raw).encode())
    seen = Snapshot(now=NOW, release=RELEASE, bases={"team/smol": of})
    made = {each.kind: each for each in plan(seen).manifests}
    assert "StatefulSet" not in made
    asked = made["LeaderWorkerSet"]
    assert asked.body["spec"]["replicas"] == 1
    there = Child("LeaderWorkerSet", "team", "smol", applied=asked.digest, replicas=1)

    def written(child: Child) -> set[str]:
        children = {child.key: child} | {
            each.key: Child(*each.key, applied=each.digest) for each in made.values() if each.kind != child.kind
        }
        return {each.kind for each in plan(msgspec.structs.replace(seen, children=children)).manifests}

    assert written(there) == set()
    assert written(msgspec.structs.replace(there, replicas=5)) == {"LeaderWorkerSet"}  # scaled by somebody else


def test_a_workers_trouble_is_reported_for_its_engine() -> None:
    full = Failure("Unschedulable", "0/8 nodes are available: insufficient nvidia.com/gpu", terminal=False)
    pods = [
        EnginePod(name="smol-0", ip="10.0.0.1"),
        EnginePod(name="smol-0-1", trouble=full),
        EnginePod(name="smol-1"),
    ]
    first, second = expected("smol", 2, pods, None)
    assert first.failure == msgspec.structs.replace(full, message=f"smol-0-1: {full.message}")
    assert second.failure is None


async def test_a_cluster_without_the_api_says_what_to_install_until_it_has_it(
    own_api_server: ApiServer, redis_client: Redis
) -> None:
    """Meanwhile, bases with one-node engines are not affected."""
    own_api_server.namespace("groups")
    with staged(own_api_server, "groups", redis_client) as stage:
        single = base_model()
        single["metadata"]["name"] = "single"
        await stage.reconcile(over_two_nodes(), single)
        ready = await stage.condition("BaseModel", "smol")
        assert (ready["status"], ready["reason"]) == ("False", "NoLeaderWorkerSets")
        assert "spec.engine.nodes is 2, which needs LeaderWorkerSet" in ready["message"]
        assert "install leaderworkerset.x-k8s.io/v1 (github.com/kubernetes-sigs/lws)" in ready["message"]
        assert (await stage.status("BaseModel", "smol"))["phase"] == "Failed"
        assert (await stage.condition("BaseModel", "smol", "Stalled"))["reason"] == "NoLeaderWorkerSets"
        assert await stage.get("StatefulSet", "single") is not None
        assert await stage.get("Service", "smol") is None

        serve_groups(own_api_server)
        await stage.once()
        found = await stage.get("LeaderWorkerSet", "smol")
        assert found is not None
        assert found["spec"]["leaderWorkerTemplate"]["size"] == 2
        await stage.engine().report()
        await stage.once()
        assert (await stage.status("BaseModel", "smol"))["phase"] == "Ready"
        assert await stage.once() == {}


@pytest.fixture
def own_api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server without LeaderWorkerSets."""
    with serve(tmp_path) as server:
        yield server
