"""The map after objects were deleted, after it was lost, and while Redis is away."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import keys
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import MapChange
from mint_operator.observing.map_view import MapView
from mint_operator.planning.snapshot import BaseMap
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model, until
from tests.redis_process import RedisProcess, full_memory


async def test_deleting_a_base_forgets_its_part_of_the_map(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
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
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS), adapter_wave("other", ADAPTERS[:1]))
    stage.delete("adapterwave", "demo")
    await stage.once()
    placements = await MapReader(stage.redis).placements(stage.base)
    assert list(placements) == ADAPTERS[:1]
    assert placements[ADAPTERS[0]].waves == (f"{stage.namespace}/other",)


async def test_a_map_that_was_flushed_is_written_again_as_it_was(stage: Stage) -> None:
    await stage.reconcile(base_model(2, 2), adapter_wave("demo", ADAPTERS))
    await stage.once()
    before = await MapReader(stage.redis).state(stage.base, ["smol-0", "smol-1"])
    await stage.redis.flushall()
    await stage.once()
    after = await MapReader(stage.redis).state(stage.base, ["smol-0", "smol-1"])
    assert (after.placements, after.assigned, after.base) == (before.placements, before.assigned, before.base)


async def test_a_redis_is_noted_as_led_once_all_bases_are_written(stage: Stage) -> None:
    stage.apply(base_model())
    await stage.redis.delete(keys.LED)
    for _ in range(2):
        await stage.once()
        assert await MapReader(stage.redis).led()
        assert stage.base in await MapReader(stage.redis).bases()
        await stage.redis.flushall()
    async with full_memory(stage.redis):
        counts = await stage.once()
    assert counts["changes"] == 1, "which a Redis takes whose memory is full"
    assert not await MapReader(stage.redis).led()
    await stage.once(frozenset())
    assert await MapReader(stage.redis).led(), "although nothing has changed"


async def test_a_redis_that_loses_everything_during_a_pass_is_not_noted_as_led(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this pass has not changed would be missing."""
    stage.apply(base_model())
    for _ in range(2):
        await stage.once()
    look = MapView.look

    async def look_before_the_loss(view: MapView, engines: Mapping[str, Sequence[str]]) -> dict[str, BaseMap]:
        found = await look(view, engines)
        await stage.redis.flushall()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(MapView, "look", look_before_the_loss)
        assert not (await stage.once())["failed"]
    assert not await MapReader(stage.redis).led()
    await stage.once()
    assert await MapReader(stage.redis).led()


async def test_a_base_that_the_set_of_bases_lacks_is_listed_again(stage: Stage) -> None:
    """Otherwise gateways would not find it before its map changes for another reason."""
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    await stage.once()
    reader = MapReader(stage.redis)
    before = await reader.state(stage.base, ["smol-0"])
    await stage.redis.srem(keys.BASES, stage.base)
    await stage.once()
    assert await reader.bases() == [stage.base]
    after = await reader.state(stage.base, ["smol-0"])
    assert (after.placements, after.assigned) == (before.placements, before.assigned)
    assert (await stage.once())["changes"] == 0


async def test_a_new_operator_fences_off_the_last_one_also_where_it_has_nothing_to_write(stage: Stage) -> None:
    """The last one may have stood still just before it sent a change."""
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    last = MapWriter(stage.redis, 1)
    stage.operator(2)
    assert (await stage.once())["changes"] == 0
    with pytest.raises(StaleEpoch):
        await last.apply(stage.base, MapChange(del_placements=(ADAPTERS[0],)))
    assert sorted(await MapReader(stage.redis).placements(stage.base)) == ADAPTERS


async def test_an_operator_that_was_overtaken_ends_before_it_has_anything_to_write(stage: Stage) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS))
    await MapWriter(stage.redis, 2).claim(stage.base)

    async def notices() -> None:
        await stage.once()

    with pytest.raises(StaleEpoch):
        await until("it to notice", notices)


async def test_a_change_of_a_map_that_is_flushed_before_it_is_written_is_not_taken_for_the_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS[:2]))
    await stage.once()
    read, write = MapReader(stage.redis), stage.applier.apply

    async def lost_before(*given: Any) -> Any:
        await stage.redis.flushall()
        return await write(*given)

    stage.apply(adapter_wave("other", ADAPTERS[2:]))
    with monkeypatch.context() as losing:
        losing.setattr(stage.applier, "apply", lost_before)
        await stage.once()
    assert (await read.state(stage.base, [])).version is None, "nobody knows by now what is wanted"
    await stage.once()
    assert sorted(await read.placements(stage.base)) == ADAPTERS
    assert sorted((await read.state(stage.base, ["smol-0"])).assigned["smol-0"]) == ADAPTERS


async def test_a_new_reason_why_redis_is_away_is_logged_again(
    mortal_stage: tuple[Stage, RedisProcess], tmp_path: Path
) -> None:
    """Otherwise nobody would learn that Redis came back with a password that this operator does not know."""
    stage, redis = mortal_stage
    await stage.reconcile(base_model())
    redis.kill()
    await stage.once()
    with RedisProcess(tmp_path, "--requirepass", "rotated", port=redis.port), capture_logs() as logs:
        for _ in range(3):
            await stage.once()
    [entry] = [line for line in logs if line["event"] == "placement map still unavailable"]
    assert "Redis refuses the password" in entry["error"]
    redis.start()
    with capture_logs() as logs:
        await stage.once()
    assert [line for line in logs if line["event"] == "placement map is back"]


async def test_redis_may_be_gone_while_things_are_deleted(mortal_stage: tuple[Stage, RedisProcess]) -> None:
    stage, redis = mortal_stage
    await stage.reconcile(base_model(), adapter_wave("demo", ADAPTERS), adapter_wave("kept", ADAPTERS[:1]))
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
