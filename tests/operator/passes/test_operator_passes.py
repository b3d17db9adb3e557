"""Passes of the loop over a real API server and a real Redis reach the wanted state in few writes."""

from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Held, Tier
from mint_operator import apply
from mint_operator.kube import KubeError
from mint_operator.observing import cluster_view
from mint_operator.observing.dirt import RESYNC, Part
from mint_operator.observing.feed import News
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model


async def test_a_wave_becomes_placements_and_then_ready_as_engines_report(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
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
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.engine().obey()
    for _ in range(2):
        await stage.once()
    assert await stage.once() == {}


async def test_a_pass_that_finds_everything_right_is_told_by_metrics_and_not_by_the_log(stage: Stage) -> None:
    def passes() -> float | None:
        return REGISTRY.get_sample_value("mint_operator_passes_total", {"outcome": "done"})

    engine = stage.engine()
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    await engine.obey()
    with capture_logs() as logs:
        assert await stage.once(RESYNC)
        while await stage.once(RESYNC):
            pass
    assert next(each["log_level"] for each in logs if each["event"] == "pass") == "info", "it wrote statuses"
    before = passes()
    assert before is not None
    with capture_logs() as logs:
        await engine.report()
        assert not await stage.once(frozenset({Part.MAP}))
    assert [(each["event"], each["log_level"]) for each in logs] == [("pass", "debug")]
    assert passes() == before + 1


async def test_a_wave_costs_at_most_four_writes_until_ready(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    send = stage.kube._send_now

    def recorded(method: str, where: str, *rest: Any) -> bytes:
        sent.append(f"{method} {where}")
        return send(method, where, *rest)

    monkeypatch.setattr(stage.kube, "_send_now", recorded)
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    for tier in (Tier.DISK, Tier.HOST, Tier.DEVICE):
        await engine.obey()
        engine.holds = {name: Held(name, held.source, tier) for name, held in engine.holds.items()}
        await engine.report()
        await stage.once()
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready"
    writes = [each for each in sent if not each.startswith("GET") and "adapterwaves/" in each]
    assert 1 <= len(writes) <= 3
    output = stage.server.kubectl(
        "get", "events", "-n", stage.namespace, "-o", "name", "--field-selector=involvedObject.kind=AdapterWave"
    )
    assert len(output.split()) == 1


async def test_a_wave_over_an_unknown_base_becomes_right_when_the_base_appears(stage: Stage) -> None:
    await stage.reconcile(adapter_wave("demo", ADAPTERS))
    assert (await stage.condition("AdapterWave", "demo", "Admitted"))["reason"] == "BaseModelNotFound"
    await stage.reconcile(base_model())
    assert (await stage.condition("AdapterWave", "demo", "Admitted"))["status"] == "True"


async def test_an_operator_of_an_older_epoch_is_refused_and_changes_nothing(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    newer, older = stage.operator(7), stage.operator(6)
    await newer.once()
    stage.apply(adapter_wave("later", ["demo/new"]))
    with pytest.raises(StaleEpoch):
        await older.once()
    assert "demo/new" not in await MapReader(stage.redis).placements(stage.base)


async def test_a_hint_that_says_nothing_new_costs_no_plan(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    for _ in range(3):
        await stage.once()
    assert await stage.once(frozenset({Part.MAP})) == {}


async def test_an_edit_that_comes_while_a_status_is_written_is_planned_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS[:1]))
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


async def test_a_status_that_is_refused_is_not_sent_with_every_pass(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, patch_status = list[str](), stage.kube.patch_status

    async def refused(kind: str, namespace: str, name: str, body: dict[str, Any]) -> bytes:
        sent.append(kind)
        if kind == "AdapterWave" and body["status"]["phase"] != "Ready":
            raise KubeError("PATCH status", 422, 'status.phase: Unsupported value: "Placing"')
        return await patch_status(kind, namespace, name, body)

    monkeypatch.setattr(stage.kube, "patch_status", refused)
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    await engine.report()
    await stage.once()
    sent.clear()
    for _ in range(3):
        await stage.once()
    assert sent == []
    await engine.obey()
    await stage.once()
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready", "once it says something else"
    monkeypatch.setattr(apply, "REFUSED_EVERY_S", 0.0)
    engine.holds = {}
    await engine.report()
    await stage.once()
    sent.clear()
    await stage.once()
    assert "AdapterWave" in sent, "and now and then in any case"


@pytest.mark.parametrize("status", [0, 429, 500])
async def test_a_status_that_cannot_be_written_is_sent_again_ever_later_and_nothing_is_listed_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    sent = fail_statuses(stage, monkeypatch, status)
    monkeypatch.setattr(apply, "FAILED_FIRST_S", 0.0)
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.dirt.take()
    for count in (2, 3):
        await stage.once(frozenset())
        assert len(sent) == count
    monkeypatch.setattr(apply, "FAILED_FIRST_S", 1e6)
    monkeypatch.setattr(apply, "REFUSED_EVERY_S", 1e6)
    await stage.once(frozenset())
    for _ in range(3):
        await stage.engine().obey()  # there is something new to say, which is not taken either
        await stage.once(frozenset({Part.MAP}))
    assert len(sent) == 4
    assert Part.WAVES not in await stage.dirt.take()


async def test_waves_are_listed_again_where_one_is_not_as_it_was_seen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_statuses(stage, monkeypatch, 409)
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.dirt.take()
    await stage.once()
    assert Part.WAVES in await stage.dirt.take()


async def test_what_the_watch_saw_before_a_listing_failed_is_planned_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_view, "LISTING_SHARE", float("inf"))  # a list may follow the last one at once
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS[:1]))
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


def fail_statuses(stage: Stage, monkeypatch: pytest.MonkeyPatch, status: int) -> list[str]:
    """Make writes of waves' statuses fail; return the list of waves whose status was sent."""
    sent, patch_status = list[str](), stage.kube.patch_status

    async def failing(kind: str, namespace: str, name: str, body: dict[str, Any]) -> bytes:
        if kind != "AdapterWave":
            return await patch_status(kind, namespace, name, body)
        sent.append(name)
        raise KubeError("PATCH status", status, "not now")

    monkeypatch.setattr(stage.kube, "patch_status", failing)
    return sent


async def feed(stage: Stage, kind: str, name: str) -> None:
    """Play the watch: pass an object on as it is now."""
    found = await stage.get(kind, name)
    assert found is not None
    stage.feed.put(found["metadata"]["uid"], News(kind, msgspec.json.encode(found)))


def fail_lists(stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str, status: int = 500) -> None:
    """Make listing objects of a kind fail; 404 means that the API server does not know the kind."""
    items = stage.kube.items

    async def failing(which: str, *rest: Any) -> list[msgspec.Raw]:
        if which == kind:
            raise KubeError(f"list of {kind}", status, "not now")
        return await items(which, *rest)

    monkeypatch.setattr(stage.kube, "items", failing)
