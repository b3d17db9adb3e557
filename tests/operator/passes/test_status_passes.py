"""The statuses of objects after a pass, over a real API server: reasons, counts, queue positions."""

from typing import Any

import pytest

from mint_contracts.map_reader import MapReader
from mint_contracts.records import Failure
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model


async def test_an_engines_terminal_failure_is_the_waves_reason(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
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
    output = stage.server.kubectl("get", "events", "-n", stage.namespace, "-o", "jsonpath={.items[*].reason}")
    assert "RankTooLarge" in output


async def test_counts_go_back_to_zero_in_the_api_too(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
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
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    why = Failure("SourceNotFound", "pvc://models/smol holds no model", terminal=True)
    await stage.engine().report(ready=False, failure=why)
    await stage.once()
    assert (await stage.status("BaseModel", "smol"))["phase"] == "Failed"
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "SourceNotFound"
    assert (await stage.condition("BaseModel", "smol", "SourceReady"))["status"] == "False"
    assert (await stage.condition("AdapterWave", "demo"))["reason"] == "SourceNotFound"
    assert (await stage.condition("AdapterWave", "demo", "Placed"))["status"] == "True"


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
ZONES = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
NO_LABEL = {"key": "no such label!", "operator": "Exists"}


@pytest.mark.parametrize(
    "engine",
    [
        {"nodeSelector": {"no such label!": "x"}},
        {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [NO_LABEL]}]}}}},
        {"affinity": {"podAntiAffinity": {REQUIRED: [{"topologyKey": "no such label!", "labelSelector": {}}]}}},
        {"topologySpreadConstraints": [ZONES | {"labelSelector": {"matchExpressions": [NO_LABEL]}}]},
        {"topologySpreadConstraints": [ZONES | {"matchLabelKeys": ["no such label!"]}]},
    ],
    ids=lambda engine: next(iter(engine)),
)
async def test_a_refusal_by_the_api_server_is_reported_in_the_bases_status(
    stage: Stage, engine: dict[str, Any]
) -> None:
    await stage.reconcile(base_model(engine=engine))
    await stage.once()
    ready = await stage.condition("BaseModel", "smol")
    assert ready["reason"] == "ApplyFailed"
    assert "no such label!" in ready["message"]
    await stage.reconcile(base_model())
    await stage.once()
    assert (await stage.condition("BaseModel", "smol"))["reason"] == "EnginesStarting"


async def test_the_map_says_of_every_wave_how_its_admission_stands(stage: Stage) -> None:
    await stage.reconcile(base_model(slots=3), adapter_wave("demo", ADAPTERS), adapter_wave("later", ["x/1"]))
    waves = await MapReader(stage.redis).waves(stage.base)
    first, second = waves[f"{stage.namespace}/demo"], waves[f"{stage.namespace}/later"]
    assert (first.admitted, first.chosen_by, first.adapters, first.slots) == (True, "names", 3, 3)
    assert (second.admitted, second.position, second.reason) == (False, 1, "WaitingForCapacity")
    version = await MapReader(stage.redis).version(stage.base)
    stage.delete("adapterwave", "later")
    await stage.once()
    assert list(await MapReader(stage.redis).waves(stage.base)) == [f"{stage.namespace}/demo"]
    assert await MapReader(stage.redis).version(stage.base) == version, "which calls no engine and no gateway"
