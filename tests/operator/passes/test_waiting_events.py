"""Why something waits is an Event: once for each new reason, and not again and again."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from mint_contracts.records import Failure
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus, Condition
from mint_operator import recorder
from mint_operator.planning.events import transition, waiting
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model
from tests.operator.worlds import NOW, base, wave

STARTING = ("EnginesStarting", "0 of 1 engines ready")
PULLING = ("ImagePullBackOff", "smol-0: ImagePullBackOff: no such image")
AWAITED = ("WaitingForCapacity", "3 slots are free, 4 needed")
LOADING = ("AdaptersLoading", "0 of 3 copies ready")
REWRITTEN = ("ManifestRewritten", "the manifest lacks some policies")


def base_told(reason: str, message: str, ready: str = "False") -> BaseModelStatus:
    conditions = [
        Condition("Ready", "True" if ready == "True" else "False", reason, message, "2027-01-15T08:00:00Z", 1),
        Condition("Progressing", "True", reason, message, "2027-01-15T08:00:00Z", 1),
    ]
    return BaseModelStatus(phase="Pending", conditions=conditions)


def wave_told(reason: str, message: str) -> AdapterWaveStatus:
    condition = Condition("Ready", "False", reason, message, "2027-01-15T08:00:00Z", 1)
    return AdapterWaveStatus(phase="Pending", conditions=[condition])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (BaseModelStatus(), base_told(*STARTING), ("Normal", *STARTING)),
        (base_told(*STARTING), base_told(*PULLING), ("Warning", *PULLING)),
        (base_told(*PULLING), base_told(PULLING[0], "another message"), None),
        (base_told(*PULLING), base_told("Settled", "1 of 1 engines ready"), None),
        (AdapterWaveStatus(), wave_told(*AWAITED), ("Warning", *AWAITED)),
        (wave_told(*AWAITED), wave_told(AWAITED[0], "2 slots are free, 4 needed"), None),
        (AdapterWaveStatus(), wave_told(*LOADING), None),
        (wave_told(*AWAITED), wave_told(*LOADING), None),
        (AdapterWaveStatus(), wave_told("CatalogUnread", "its adapters have not been looked up yet"), None),
        (AdapterWaveStatus(), wave_told("ManifestUnread", "it has not been read yet"), None),
        (AdapterWaveStatus(), wave_told(*REWRITTEN), ("Warning", *REWRITTEN)),
    ],
)
def test_a_new_reason_is_an_event(old: Any, new: Any, told: tuple[str, str, str] | None) -> None:
    kind, of = ("BaseModel", base()) if isinstance(new, BaseModelStatus) else ("AdapterWave", wave("w"))
    event = waiting(kind, of.meta, old, new, NOW)
    assert (event and (event["type"], event["reason"], event["message"])) == told


def test_a_base_that_is_ready_tells_why_some_of_its_engines_are_not() -> None:
    settled, pulling = base_told("Settled", "1 of 1 engines ready"), base_told(*PULLING)
    ready = msgspec.structs.replace(pulling.conditions[0], status="True", reason="EnginesReady")
    new = msgspec.structs.replace(pulling, phase="Ready", conditions=[ready, pulling.conditions[1]])
    event = waiting("BaseModel", base().meta, settled, new, NOW)
    assert event is not None
    assert event["reason"] == PULLING[0]


@pytest.mark.parametrize(("phase", "kind"), [("Rolling", "Normal"), ("Degraded", "Warning")])
def test_a_roll_and_its_failure_are_told_with_their_reasons(phase: str, kind: str) -> None:
    ready = Condition("Ready", "True", "EnginesReady", "2 of 2 engines ready", "2027-01-15T08:00:00Z", 1)
    moves = msgspec.structs.replace(
        ready, type="Progressing", reason="RollingUpdate", message="0 of 2 engines updated"
    )
    old = BaseModelStatus(phase="Ready", conditions=[ready])
    new = BaseModelStatus(phase=phase, conditions=[ready, moves])
    event = transition("BaseModel", base().meta, old, new, NOW)
    assert event is not None
    assert (event["type"], event["reason"], event["message"]) == (kind, moves.reason, moves.message)


@pytest.mark.parametrize(("base_reason", "told"), [(PULLING, False), (STARTING, True)])
def test_a_wave_leaves_it_to_its_base_to_tell_why_that_is_not_ready(
    base_reason: tuple[str, str], *, told: bool
) -> None:
    new = wave_told(PULLING[0], "0 of 1 copies ready; the base model is not ready: no such image")
    event = waiting("AdapterWave", wave("w").meta, wave_told(*LOADING), new, NOW, base_told(*base_reason))
    assert (event is not None) == told


def reasons(stage: Stage, kind: str) -> Sequence[str]:
    """Return the reasons of all Events about objects of this kind, in order."""
    which = f"--field-selector=involvedObject.kind={kind}"
    order = "--sort-by=.metadata.creationTimestamp"
    return stage.kubectl("get", "events", which, order, "-o", "jsonpath={.items[*].reason}").split()


async def test_describe_says_why_a_wave_waits(stage: Stage) -> None:
    stage.apply(base_model(slots=3), adapter_wave("demo", ADAPTERS), adapter_wave("later", ["x/1"]))
    for _ in range(3):
        await stage.once()
        await stage.engine().obey()
    output = stage.kubectl("describe", "adapterwave", "later")
    assert output.count("WaitingForCapacity  ") == 1, output
    assert reasons(stage, "AdapterWave").count("WaitingForCapacity") == 1


async def test_a_reason_that_comes_and_goes_is_told_once_in_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.reconcile(base_model())
    engine = stage.engine()
    failing = Failure("SourceUnavailable", "the bucket did not answer", terminal=False)

    async def come_and_go() -> None:
        for failure in (failing, None):
            await engine.report(ready=False, failure=failure)
            await stage.once()

    for _ in range(3):
        await come_and_go()
    assert sorted(reasons(stage, "BaseModel")) == ["BaseLoading", "EnginesStarting", "SourceUnavailable"]
    monkeypatch.setattr(recorder, "REPEAT_S", 0.0)
    await come_and_go()
    assert reasons(stage, "BaseModel").count("SourceUnavailable") == 2


async def test_why_a_base_fails_is_an_event_of_the_base_and_not_of_each_wave(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    for reason in ("SourceUnavailable", "SourceNotFound"):
        await engine.report(ready=False, failure=Failure(reason, "the bucket did not answer", terminal=False))
        await stage.once()
        assert (await stage.condition("AdapterWave", "demo"))["reason"] == reason
    assert {"SourceUnavailable", "SourceNotFound"} <= set(reasons(stage, "BaseModel"))
    assert reasons(stage, "AdapterWave") == []


async def test_a_roll_that_is_hindered_for_moments_is_told_once_in_a_while(stage: Stage) -> None:
    await stage.reconcile(base_model(1, 2))
    engine = stage.engine(0)
    await engine.obey()
    await stage.once()
    outdated_pod(stage, "smol-0")
    await stage.once()
    failing = Failure("SourceUnavailable", "the bucket did not answer", terminal=False)
    phases = []
    for failure in (None, failing, None, failing, None):
        await engine.report()
        await stage.engine(1).report(ready=False, failure=failure)
        await stage.once()
        phases.append((await stage.status("BaseModel", "smol"))["phase"])
    assert phases == ["Rolling", "Degraded", "Rolling", "Degraded", "Rolling"]
    told = reasons(stage, "BaseModel")
    assert [told.count(each) for each in ("RollingUpdate", "SourceUnavailable")] == [1, 1]


def outdated_pod(stage: Stage, name: str) -> None:
    """Write an engine's pod, ready, that was made from other settings than the base has now."""
    labels = {"app.kubernetes.io/managed-by": "mint", "mint.dev/base-model": "smol"}
    named = {"name": name, "labels": labels, "annotations": {"mint.dev/settings": "old"}}
    spec = {"containers": [{"name": "engine", "image": "x"}], "automountServiceAccountToken": False}
    stage.apply({"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec})
    is_ready = [{"type": "Ready", "status": "True"}]
    status = {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": is_ready}
    patch = json.dumps({"status": status})
    stage.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
