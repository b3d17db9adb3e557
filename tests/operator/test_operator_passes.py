"""Passes of the loop over a real API server and a real Redis, with engines played by the test."""

from typing import Any

import msgspec
import pytest

from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Failure, Held, Tier
from mint_operator.kube import KubeError
from mint_operator.observing import cluster_view
from mint_operator.observing.dirt import RESYNC, Part
from mint_operator.observing.feed import News
from mint_operator.planning.snapshot import Release
from tests.operator.stage import RELEASE, Stage, adapter_wave, base_model
from tests.redis_process import RedisProcess

ADAPTERS = ["demo/json", "demo/pirate", "demo/shout"]


async def test_a_base_becomes_its_objects_owned_by_it(stage: Stage) -> None:
    stage.apply(base_model())
    await stage.once()
    base = await stage.get("BaseModel", "smol")
    assert base is not None
    for kind, name in [
        ("StatefulSet", "smol"),
        ("Service", "smol"),
        ("PodDisruptionBudget", "smol"),
        ("NetworkPolicy", "smol"),
        ("ServiceAccount", "smol-engine"),
    ]:
        found = await stage.get(kind, name)
        assert found is not None, kind
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (base["metadata"]["uid"], True)
        assert found["metadata"]["labels"]["mint.dev/base-model"] == "smol"


async def test_a_wave_becomes_placements_and_then_ready_as_engines_report(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    status = await stage.status("AdapterWave", "demo")
    assert (status["phase"], status["summary"]) == ("Placing", "0/3")
    assert status["observedGeneration"] == 1
    engine = stage.engine()
    assert sorted(await engine.assigned()) == ADAPTERS
    await engine.report()
    await stage.once()
    assert (await stage.status("BaseModel", "smol"))["phase"] == "Ready"
    assert (await stage.condition("AdapterWave", "demo"))["reason"] == "AdaptersLoading"
    await engine.obey()
    await stage.once()
    status = await stage.status("AdapterWave", "demo")
    assert (status["phase"], status["summary"]) == ("Ready", "3/3")
    assert status["counts"]["device"] == 3
    assert status["engines"] == [{"name": "smol-0", "wanted": 3, "ready": 3}]
    stage.server.kubectl("wait", "-n", stage.namespace, "--for=condition=Ready", "adapterwave/demo", "--timeout=30s")
    stage.server.kubectl("wait", "-n", stage.namespace, "--for=condition=Ready", "basemodel/smol", "--timeout=30s")


async def test_a_pass_that_finds_everything_right_writes_nothing(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    await stage.engine().obey()
    for _ in range(2):
        await stage.once()
    assert await stage.once() == {}


async def test_a_wave_costs_at_most_four_writes_until_ready(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    send = stage.kube._send_now

    def recorded(method: str, where: str, *rest: Any) -> bytes:
        sent.append(f"{method} {where}")
        return send(method, where, *rest)

    monkeypatch.setattr(stage.kube, "_send_now", recorded)
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    engine = stage.engine()
    for tier in (Tier.DISK, Tier.HOST, Tier.DEVICE):
        await engine.obey()
        engine.holds = {name: Held(name, held.source, tier) for name, held in engine.holds.items()}
        await engine.report()
        await stage.once()
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready"
    writes = [each for each in sent if not each.startswith("GET") and "adapterwaves/" in each]
    assert 1 <= len(writes) <= 3
    told = stage.server.kubectl(
        "get", "events", "-n", stage.namespace, "-o", "name", "--field-selector=involvedObject.kind=AdapterWave"
    )
    assert len(told.split()) == 1


async def test_what_an_engine_says_of_a_terminal_failure_is_the_waves_reason(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    why = Failure("RankTooLarge", "rank 128 is above 64; raise spec.adapters.maxRank", terminal=True)
    await stage.engine().obey(failures={"demo/json": why})
    await stage.once()
    status = await stage.status("AdapterWave", "demo")
    assert (status["phase"], status["summary"]) == ("Failed", "2/3")
    assert status["failures"] == [
        {"adapter": "demo/json", "engine": "smol-0", "reason": why.reason, "message": why.message}
    ]
    ready = await stage.condition("AdapterWave", "demo")
    assert (ready["status"], ready["reason"]) == ("False", "RankTooLarge")
    told = stage.server.kubectl("get", "events", "-n", stage.namespace, "-o", "jsonpath={.items[*].reason}")
    assert "RankTooLarge" in told


async def test_counts_go_back_to_zero_in_the_api_too(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    engine = stage.engine()
    await engine.obey()
    await stage.once()
    assert (await stage.status("AdapterWave", "demo"))["counts"]["ready"] == 3
    engine.holds = {}
    await engine.report()
    await stage.once()
    status = await stage.status("AdapterWave", "demo")
    assert (status["phase"], status["counts"]["ready"], status["counts"]["device"]) == ("Degraded", 0, 0)
    assert status["engines"] == [{"name": "smol-0", "wanted": 3, "ready": 0}]


async def test_a_base_without_its_source_says_so_through_its_engines(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    why = Failure("SourceNotFound", "pvc://models/smol holds no model", terminal=True)
    await stage.engine().report(ready=False, failure=why)
    await stage.once()
    assert (await stage.status("BaseModel", "smol"))["phase"] == "Failed"
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "SourceNotFound"
    assert (await stage.condition("BaseModel", "smol", "SourceReady"))["status"] == "False"
    assert (await stage.condition("AdapterWave", "demo"))["reason"] == "SourceNotFound"
    assert (await stage.condition("AdapterWave", "demo", "Placed"))["status"] == "True"


async def test_a_wave_over_an_unknown_base_becomes_right_when_the_base_appears(stage: Stage) -> None:
    stage.apply(adapter_wave("demo", ADAPTERS))
    await stage.once()
    assert (await stage.condition("AdapterWave", "demo", "Admitted"))["reason"] == "BaseModelNotFound"
    stage.apply(base_model())
    await stage.once()
    assert (await stage.condition("AdapterWave", "demo", "Admitted"))["status"] == "True"


async def test_deleting_a_base_forgets_its_part_of_the_map(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    engine = stage.engine()
    await engine.obey()
    await stage.once()
    stage.delete("basemodel", "smol")
    await stage.once()
    assert await MapReader(stage.redis).placements(stage.base) == {}
    assert await engine.assigned() == {}
    await engine.leave()
    await stage.once()
    assert await stage.redis.keys(f"mint:{{{stage.base}}}:*") == [f"mint:{{{stage.base}}}:epoch"]
    assert await MapReader(stage.redis).bases() == []
    assert (await stage.condition("AdapterWave", "demo"))["reason"] == "BaseModelNotFound"


async def test_deleting_a_wave_frees_what_only_it_wanted(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS), adapter_wave("other", ADAPTERS[:1]))
    await stage.once()
    stage.delete("adapterwave", "demo")
    await stage.once()
    placements = await MapReader(stage.redis).placements(stage.base)
    assert list(placements) == ADAPTERS[:1]
    assert placements[ADAPTERS[0]].waves == (f"{stage.namespace}/other",)


async def test_a_map_that_was_flushed_is_written_again_as_it_was(stage: Stage) -> None:
    stage.apply(base_model(2, 2), adapter_wave("demo", ADAPTERS))
    await stage.once()
    await stage.once()
    before = await MapReader(stage.redis).state(stage.base, ["smol-0", "smol-1"])
    await stage.redis.flushall()
    await stage.once()
    after = await MapReader(stage.redis).state(stage.base, ["smol-0", "smol-1"])
    assert (after.placements, after.assigned, after.base) == (before.placements, before.assigned, before.base)


async def test_an_operator_of_an_older_epoch_is_refused_and_changes_nothing(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    newer, older = stage.operator(7), stage.operator(6)
    await newer.once()
    stage.apply(adapter_wave("later", ["demo/new"]))
    with pytest.raises(StaleEpoch):
        await older.once()
    assert "demo/new" not in await MapReader(stage.redis).placements(stage.base)


async def test_redis_may_be_gone_while_things_are_deleted(mortal_stage: tuple[Stage, RedisProcess]) -> None:
    stage, redis = mortal_stage
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS), adapter_wave("kept", ADAPTERS[:1]))
    await stage.once()
    await stage.engine().obey()
    await stage.once()
    redis.kill()
    await stage.once()
    ready = await stage.condition("AdapterWave", "kept")
    assert (ready["status"], ready["reason"]) == ("Unknown", "MapUnavailable")
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "MapUnavailable"
    assert (await stage.status("AdapterWave", "kept"))["phase"] == "Degraded"
    stage.delete("adapterwave", "demo")
    await stage.once()
    redis.start()
    await stage.once()
    assert list(await MapReader(stage.redis).placements(stage.base)) == ADAPTERS[:1]
    redis.kill()
    stage.delete("basemodel", "smol")
    stage.delete("adapterwave", "kept")
    await stage.once()
    redis.start()
    await stage.once()
    assert await MapReader(stage.redis).bases() == []


async def test_what_the_api_server_refuses_is_told_in_the_base(stage: Stage) -> None:
    stage.apply(base_model(engine={"nodeSelector": {"no such label!": "x"}}))
    await stage.once()
    await stage.once()
    ready = await stage.condition("BaseModel", "smol")
    assert ready["reason"] == "ApplyFailed"
    assert "no such label!" in ready["message"]
    stage.apply(base_model())
    await stage.once()
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


async def test_one_base_that_cannot_be_applied_hinders_no_other(stage: Stage) -> None:
    bad = base_model(engine={"nodeSelector": {"no such label!": "x"}}) | {"metadata": {"name": "bad"}}
    stage.apply(bad, base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    await stage.engine().obey()
    await stage.once()
    assert (await stage.condition("BaseModel", "bad"))["reason"] == "ApplyFailed"
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready"
    assert (await stage.status("BaseModel", "smol"))["phase"] == "Ready"


async def test_an_object_of_somebody_else_is_never_taken_over(stage: Stage) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "smol"}, "spec": {"ports": [{"port": 80}]}}
    stage.apply(theirs, base_model())
    await stage.once()
    await stage.once()
    found = await stage.get("Service", "smol")
    assert found is not None
    assert [port["port"] for port in found["spec"]["ports"]] == [80]
    assert "is not MinT's" in (await stage.condition("BaseModel", "smol"))["message"]


async def test_engines_that_somebody_scaled_are_scaled_back(stage: Stage) -> None:
    stage.apply(base_model())
    await stage.once()
    stage.server.kubectl("scale", "-n", stage.namespace, "statefulset/smol", "--replicas=5")
    await stage.once()
    found = await stage.get("StatefulSet", "smol")
    assert found is not None
    assert found["spec"]["replicas"] == 1


async def test_engines_get_redis_password_from_a_secret_of_their_own_namespace(stage: Stage) -> None:
    stage.release = Release(image=RELEASE.image, redis_url=RELEASE.redis_url, redis_password="hush", redis_digest="1")
    stage.operator(1)
    stage.apply(base_model())
    await stage.once()
    secret = await stage.get("Secret", "mint-engine-redis")
    assert secret is not None
    assert secret["data"] == {"password": "aHVzaA=="}
    pods = await stage.get("StatefulSet", "smol")
    assert pods is not None
    assert "hush" not in str(pods)
    assert (await stage.once())["manifests"] == 0


async def test_engines_wait_for_the_secret_with_which_they_are_to_start_anew(
    stage: Stage,
) -> None:
    """They would start with what the Secret said before, and never again."""
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mint-engine-redis"}}
    stage.apply(base_model())
    await stage.once()
    before = await stage.get("StatefulSet", "smol")
    assert before is not None
    stage.apply(theirs)
    stage.release = msgspec.structs.replace(RELEASE, redis_password="hush", redis_digest="1")
    stage.operator(2)
    for _ in range(2):
        await stage.once()
    assert await stage.get("StatefulSet", "smol") == before
    assert "is not MinT's" in (await stage.condition("BaseModel", "smol", "EnginesReady"))["message"]
    stage.delete("secret", "mint-engine-redis")
    stage.operator(3)
    await stage.once()
    after = await stage.get("StatefulSet", "smol")
    assert after is not None
    assert after["spec"]["template"]["metadata"]["annotations"]["mint.dev/redis"] == "1"


async def test_a_hint_that_says_nothing_new_costs_no_plan(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    for _ in range(3):
        await stage.once()
    assert await stage.once(frozenset({Part.MAP})) == {}


async def test_the_map_says_of_every_wave_how_its_admission_stands(stage: Stage) -> None:
    stage.apply(base_model(slots=3), adapter_wave("demo", ADAPTERS), adapter_wave("later", ["x/1"]))
    await stage.once()
    waves = await MapReader(stage.redis).waves(stage.base)
    first, second = waves[f"{stage.namespace}/demo"], waves[f"{stage.namespace}/later"]
    assert (first.admitted, first.chosen_by, first.adapters, first.slots) == (True, "names", 3, 3)
    assert (second.admitted, second.position, second.reason) == (False, 1, "WaitingForCapacity")
    version = await MapReader(stage.redis).version(stage.base)
    stage.delete("adapterwave", "later")
    await stage.once()
    assert list(await MapReader(stage.redis).waves(stage.base)) == [f"{stage.namespace}/demo"]
    assert await MapReader(stage.redis).version(stage.base) == version, "which calls no engine and no gateway"


async def test_an_edit_that_comes_while_a_status_is_written_is_planned_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS[:1]))
    await stage.once()
    await stage.engine().obey()
    patch_status = stage.kube.patch_status

    async def after_an_edit(kind: str, *rest: Any) -> bytes:
        if kind == "AdapterWave":
            stage.apply(adapter_wave("demo", ADAPTERS))
        return await patch_status(kind, *rest)

    monkeypatch.setattr(stage.kube, "patch_status", after_an_edit)
    await stage.once()
    monkeypatch.undo()
    assert sorted(await stage.engine().assigned()) == ADAPTERS[:1]
    await stage.once(frozenset())
    assert sorted(await stage.engine().assigned()) == ADAPTERS


async def test_what_the_watch_saw_before_a_listing_failed_is_planned_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_view, "LISTING_SHARE", float("inf"))  # a list may follow the last one at once
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS[:1]))
    await stage.once()
    await stage.once()
    fail_lists(stage, monkeypatch, "Pod")
    await stage.once(RESYNC)
    monkeypatch.undo()
    stage.apply(adapter_wave("demo", ADAPTERS))
    await feed(stage, "AdapterWave", "demo")
    with pytest.raises(KubeError):
        await stage.once(frozenset())
    await stage.once(frozenset())
    assert sorted(await stage.engine().assigned()) == ADAPTERS


@pytest.mark.parametrize("kind", ["StatefulSet", "LeaderWorkerSet"])
async def test_a_base_whose_engines_could_not_be_listed_at_first_is_planned_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    await stage.once()
    await stage.once()
    stage.apply(base_model(engine={"nodes": 2, "tensorParallelSize": 2}))
    await feed(stage, "BaseModel", "smol")
    fail_lists(stage, monkeypatch, kind)
    with pytest.raises(KubeError):
        await stage.once(frozenset())
    monkeypatch.undo()
    fail_lists(stage, monkeypatch, "LeaderWorkerSet", status=404)
    await stage.once(frozenset())
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "NoLeaderWorkerSets"


async def feed(stage: Stage, kind: str, name: str) -> None:
    """Play the watch: pass an object on as it is now."""
    found = await stage.get(kind, name)
    assert found is not None
    stage.feed.saw(found["metadata"]["uid"], News(kind, msgspec.json.encode(found)))


def fail_lists(stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str, status: int = 500) -> None:
    """Have the API server fail where objects of that kind are listed; 404: it knows no such kind."""
    items = stage.kube.items

    async def failing(which: str, *rest: Any) -> list[msgspec.Raw]:
        if which == kind:
            raise KubeError(f"list of {kind}", status, "not now")
        return await items(which, *rest)

    monkeypatch.setattr(stage.kube, "items", failing)
