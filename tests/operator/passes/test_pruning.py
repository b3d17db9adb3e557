"""With CRDs older than the operator, fields that they drop are reported once, and not written forever."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mint_contracts.resources import AdapterWaveStatus, LoadingStatus, TrainingStatus, WaveFailure
from mint_operator import pruning
from mint_operator.planning import status_write
from mint_operator.pruning import left_out, without
from tests.operator.stage import ADAPTERS, PlayedEngine, Stage, adapter_wave, base_model

STATUS = AdapterWaveStatus(
    phase="Ready",
    failures=[WaveFailure("a/b", "smol-0", "NotFound", "no such file")],
    training=TrainingStatus(step=3),
    loading=LoadingStatus(copies=2, eta="4s"),
)


@pytest.fixture
def old_crds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Make the API server drop waves' summaries; yield a function for the objects written since its last call."""
    patch_status, written = stage.kube.patch_status, list[str]()

    async def pruned(kind: str, namespace: str, name: str, body: dict[str, Any]) -> bytes:
        written.append(f"{kind}/{name}")
        status = {key: each for key, each in body["status"].items() if kind != "AdapterWave" or key != "summary"}
        return await patch_status(kind, namespace, name, body | {"status": status})

    monkeypatch.setattr(stage.kube, "patch_status", pruned)
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 0.0)

    def taken() -> list[str]:
        found = written[:]
        written.clear()
        return found

    return taken


async def test_a_field_that_is_not_kept_is_told_once_and_not_written_for_ever(
    stage: Stage, old_crds: Callable[[], list[str]]
) -> None:
    engine = await loading(stage)
    assert "AdapterWave/demo" in old_crds()
    for _ in range(3):
        await stage.once()
    assert old_crds() == []
    output = stage.kubectl("get", "events", "--field-selector=reason=CRDsOutdated", "-o=jsonpath={.items[*].message}")
    assert output.count("status.summary; apply those of its version: kubectl apply") == 1
    await engine.obey()
    await stage.once()
    assert "AdapterWave/demo" in old_crds(), "what is kept is told as ever"


async def test_once_the_crds_are_applied_all_is_told_again(
    stage: Stage, old_crds: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "LOOK_S", 0.0)
    await loading(stage)
    assert "summary" not in await stage.status("AdapterWave", "demo")
    monkeypatch.undo()
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 0.0)
    await stage.once()
    assert (await stage.status("AdapterWave", "demo"))["summary"] == "0/3"


async def loading(stage: Stage) -> PlayedEngine:
    """Return an engine that has yet to load a wave's adapters."""
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    await engine.report()
    await stage.once()
    return engine


def test_what_is_left_out_is_found_at_any_depth() -> None:
    sent = status_write.body(STATUS)
    assert left_out(sent, sent) == frozenset()
    came = {**sent, "failures": [{"adapter": "a/b", "engine": "smol-0", "reason": "NotFound"}]}
    came["training"] = {name: each for name, each in sent["training"].items() if name != "tokens"}
    del came["loading"]
    assert left_out(sent, came) == {"failures.message", "training.tokens", "loading"}


def test_a_status_is_read_back_without_what_is_left_out() -> None:
    kept = without(STATUS, {"training.step", "loading"})
    assert kept.training == TrainingStatus()
    assert (kept.loading, kept.failures) == (LoadingStatus(), STATUS.failures)
    assert without(STATUS, {"failures.message"}) == STATUS, "no failure can be read without it"


def test_a_status_without_the_field_says_nothing_of_it() -> None:
    found, bare = pruning.Pruning(), AdapterWaveStatus()
    whole = status_write.body(STATUS)
    del whole["training"]
    assert found.learn("AdapterWave", STATUS, _object(whole), 0.0) is not None
    assert found.learn("AdapterWave", bare, _object(status_write.body(bare)), 1.0) is None
    assert found.readable("AdapterWave", STATUS).training is None
    assert found.check_due(61.0)
    assert found.readable("AdapterWave", STATUS).training == STATUS.training
    assert found.learn("AdapterWave", STATUS, _object(status_write.body(STATUS)), 61.0) == ""
    assert not found.check_due(1000.0)


def _object(status: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"status": status})
