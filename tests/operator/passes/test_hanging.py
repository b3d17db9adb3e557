"""A call that hangs for one base's objects, for example in a webhook of its namespace, delays nothing else."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from mint_contracts import backoff
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_operator import apply
from mint_operator.kube import KubeError
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model, until
from tests.waiting import PATIENCE_S

HUNG = base_model() | {"metadata": {"name": "hung"}}
ALL = ["ServiceAccount", "Service", "NetworkPolicy", "PodDisruptionBudget", "StatefulSet"]


class Webhook:
    """Fails everything that is applied for the base `hung`, with `status`, once `answers` is set."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status, self.answers, self.asked = 0, asyncio.Event(), list[str]()
        self._apply = stage.kube.apply
        monkeypatch.setattr(stage.kube, "apply", self._applied)

    async def _applied(self, body: Mapping[str, Any]) -> bytes:
        if not body["metadata"]["name"].startswith("hung"):
            return await self._apply(body)
        self.asked.append(body["kind"])
        await asyncio.wait_for(self.answers.wait(), PATIENCE_S)
        raise KubeError("PATCH", self.status, "failed calling webhook")


@pytest.fixture
async def webhook(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Webhook:
    monkeypatch.setattr(backoff, "delay_s", lambda *_, **__: 1e6)  # nothing is tried again within a test
    return Webhook(stage, monkeypatch)


async def test_other_objects_the_map_and_statuses_are_written_meanwhile(stage: Stage, webhook: Webhook) -> None:
    stage.apply(HUNG, base_model(), adapter_wave("demo", ADAPTERS))
    began = stage.loop.moved_at
    one_pass = asyncio.create_task(stage.once())
    await until("engines of the other base", partial(stage.get, "StatefulSet", "smol"))

    async def both_written() -> bool:
        status = await stage.status("AdapterWave", "demo")
        return status.get("phase") == "Placing" and (await stage.status("BaseModel", "hung")) != {}

    await until("statuses", both_written)
    assert sorted(await MapReader(stage.redis).placements(stage.base)) == ADAPTERS
    assert webhook.asked == ALL[:1]
    assert not one_pass.done()
    assert stage.loop.moved_at > began, "which the liveness probe is told"
    webhook.answers.set()
    assert (await one_pass)["failed"] == 1


async def test_behind_an_object_that_hung_the_base_has_none_tried_before_that_one_is_again(
    stage: Stage, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook.answers.set()
    stage.apply(HUNG)
    for _ in range(2):
        await stage.once()
    assert webhook.asked == ALL[:1]
    assert (await stage.condition("BaseModel", "hung"))["reason"] == "ApplyFailed"
    await stage.reconcile(base_model(slots=4) | {"metadata": {"name": "hung"}})
    assert webhook.asked == ALL[:1], "what hung is as it was"
    monkeypatch.setattr(backoff, "delay_s", lambda *_, **__: 0.0)
    stage.operator(2)
    for count in (2, 3):
        await stage.once()
        assert webhook.asked == ALL[:1] * count


@pytest.mark.parametrize(("slow_s", "asked"), [(600.0, ALL), (0.0, ALL[:1])])
async def test_only_a_timeout_and_no_refusal_delays_other_objects(
    stage: Stage, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, slow_s: float, asked: list[str]
) -> None:
    monkeypatch.setattr(apply, "HUNG_S", slow_s)
    webhook.status = 500
    webhook.answers.set()
    await stage.reconcile(HUNG)
    assert webhook.asked == asked


async def test_an_operator_that_is_overtaken_ends_although_an_object_hangs(
    stage: Stage, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    write = stage.applier.apply

    async def overtaken_before(*given: Any) -> Any:
        await MapWriter(stage.redis, 7).claim(stage.base)
        return await write(*given)

    monkeypatch.setattr(stage.applier, "apply", overtaken_before)
    stage.apply(HUNG, adapter_wave("later", ["demo/new"]))
    with pytest.raises(StaleEpoch):
        await stage.once()
