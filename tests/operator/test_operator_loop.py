"""The running loop, with heartbeats that come more often than its resyncs."""

from functools import partial

import pytest

from mint_contracts.records import Held, Tier
from mint_contracts.source import Source
from mint_operator.planning import engines, status_write
from tests.operator.stage import Stage, adapter_wave, base_model, running, until


def held(count: int) -> dict[str, Held]:
    names = [f"demo/{index}" for index in range(count)]
    return {name: Held(name, Source(uri=f"pvc://samples/adapters/{name}"), Tier.DEVICE, "sha256:0") for name in names}


async def test_counts_held_back_for_their_pace_are_told_although_only_heartbeats_follow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 2.0)
    stage.apply(base_model())
    engine = stage.engine()
    await engine.report()

    async with running(stage, engine):
        for count in (3, 2):  # the second follows too soon after the first to be written at once
            engine.holds = held(count)
            await engine.report()
            await until(f"{count} slots to be told", partial(_slots_shown, stage, count))


@pytest.mark.parametrize("comes_back", [False, True], ids=["away", "its next start loads its base"])
async def test_adapters_of_an_engine_that_is_not_ready_again_go_elsewhere_although_only_heartbeats_follow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setattr(engines, "AWAY_GRACE_S", 1.0)
    monkeypatch.setattr(engines, "LOADING_GRACE_S", 1.0)
    stage.apply(base_model(2, 2), adapter_wave("demo", ["demo/pirate"]))
    leaving, staying = stage.engine(0), stage.engine(1)
    for engine in (leaving, staying):
        await engine.report()
    async with running(stage, staying):
        await until("the adapter's place", leaving.assigned)
        await leaving.leave()
        if comes_back:
            await leaving.report(ready=False)
        await until("another place", staying.assigned)


async def _slots_shown(stage: Stage, count: int) -> bool:
    slots: dict[str, int] = (await stage.status("BaseModel", "smol")).get("slots", {})
    return slots.get("used") == count
