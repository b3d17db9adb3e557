"""The gateway's copy of the map: it follows changes, outlives Redis, and forgets only what was really removed."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mint_contracts import errors, keys
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import MapChange, Tier
from mint_gateway import mirror as mirrors
from mint_gateway.client import question
from tests.contracts.placed import held, outlive, record
from tests.gateway.scene import BASE, LIMIT_S, PIRATE, Scene
from tests.redis_process import RedisProcess
from tests.waiting import until


async def test_answers_go_on_while_redis_is_away_and_are_current_again_afterwards(
    fragile: Scene, own_redis: RedisProcess
) -> None:
    await fragile.base()
    engine, late = await fragile.engine("e-0"), await fragile.engine("e-1")
    await fragile.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await fragile.open()
    await fragile.seen(engine, late)
    mirror = fragile.gateway.mirror
    with capture_logs() as logs:
        own_redis.kill()
        await until(lambda: mirror.away)
        for _ in range(3):
            assert (await fragile.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-0"
        for unknown in (question("Ahoy?", adapter="demo/nobody"), question("Ahoy?", base_model="demo/other")):
            with pytest.raises(errors.MapUnavailable, match="Redis is not responding; retry") as refused:
                await fragile.client.answer(unknown)
            assert refused.value.retry_after_s, "it may have come since"
        await engine.silence()
        await engine.deafen()  # only its connection counts while heartbeats cannot be read
        with pytest.raises(errors.EngineUnavailable):
            await fragile.client.answer(question("Ahoy?", adapter="demo/pirate"))
        assert (await fragile.client.answer(question("Ahoy?", base_model=BASE))).engine == "e-1"
        assert mirror.age_s() > 0
    warnings = [line for line in logs if line["event"].startswith("placement map is unavailable")]
    assert len(warnings) == 1
    counted = fragile.gateway.metrics.registry.get_sample_value
    assert counted("mint_gateway_map_outages_total") == 1

    own_redis.start()  # empty, having lost everything
    await until(lambda: not mirror.away)
    await until(lambda: late.record() == mirror.views[BASE].engines["e-1"].record)
    assert "demo/pirate" in mirror.views[BASE].placements
    assert (await fragile.client.answer(question("Ahoy?", base_model=BASE))).engine == "e-1"
    # Only after the operator has rewritten the map does a missing name mean anything.
    with pytest.raises(errors.MapUnavailable, match="not complete yet; retry"):
        await fragile.client.answer(question("Ahoy?", adapter="demo/nobody"))
    await fragile.writer.apply(BASE, MapChange(base=mirror.views[BASE].record))
    await until(lambda: not mirror.views[BASE].placements)
    with pytest.raises(errors.AdapterNotFound):
        await fragile.client.answer(question("Ahoy?", adapter="demo/nobody"))


async def test_a_new_reason_why_redis_is_away_is_logged_again(
    fragile: Scene, own_redis: RedisProcess, tmp_path: Path
) -> None:
    """Otherwise nobody would notice that Redis came back with a password that this gateway does not know."""
    await fragile.base()
    await fragile.open()
    await fragile.seen()
    mirror = fragile.gateway.mirror
    with capture_logs() as logs:
        own_redis.kill()
        await until(lambda: mirror.away)
        with RedisProcess(tmp_path, "--requirepass", "rotated", port=own_redis.port):
            await until(lambda: any("Redis refuses the password" in line.get("error", "") for line in logs))
    warnings = [(line["event"], line["error"]) for line in logs if line["event"].startswith("placement map is")]
    assert [event.partition(";")[0] for event, _ in warnings] == [
        "placement map is unavailable",
        *["placement map is still unavailable"] * (len(warnings) - 1),
    ]
    assert len(set(warnings)) == len(warnings), "each once"


async def test_a_map_that_was_flushed_goes_on_serving(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.begin(engine)
    await scene.redis.flushall()
    await until(lambda: scene.gateway.mirror.views[BASE].version is None)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-0"
    await until(lambda: engine.reported_full > 2)  # the engine reports again by itself
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-0"


async def test_an_engine_is_dead_when_its_heartbeat_runs_out(scene: Scene) -> None:
    engine = await scene.with_engine()
    await engine.silence()
    assert scene.gateway.mirror.views[BASE].engines["e-0"].alive
    await scene.redis.pexpire(keys.engine(BASE, "e-0"), 1)  # as if its time had passed
    await until(lambda: not scene.gateway.mirror.views[BASE].engines["e-0"].alive)


async def test_answers_go_on_while_redis_takes_no_writes(fragile: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk, Redis still answers, but refuses the heartbeats of engines that are well."""
    monkeypatch.setattr(mirrors, "HEARTBEAT_TTL_S", 0.1)
    engine = await fragile.with_engine()
    await engine.silence()
    mirror = fragile.gateway.mirror
    both = fragile.redis.pipeline(transaction=False)
    both.pexpire(keys.engine(BASE, "e-0"), 20)
    both.config_set("min-replicas-to-write", 1)
    await both.execute()
    await until(lambda: mirror.away)
    assert (await fragile.client.answer(question("Ahoy?", base_model=BASE))).engine == "e-0"
    await fragile.redis.config_set("min-replicas-to-write", 0)
    await until(lambda: not mirror.away)
    await until(lambda: not mirror.views[BASE].engines["e-0"].alive)


async def test_after_an_outage_engines_get_time_to_speak_again(fragile: Scene, own_redis: RedisProcess) -> None:
    engine = await fragile.with_engine()
    own_redis.kill()
    await until(lambda: fragile.gateway.mirror.away)
    await engine.silence()
    own_redis.start()
    await until(lambda: not fragile.gateway.mirror.away)
    assert fragile.gateway.mirror.views[BASE].engines["e-0"].alive  # silent, but not yet long enough to be dead
    await until(lambda: "e-0" not in fragile.gateway.mirror.views[BASE].engines)


@pytest.mark.parametrize("leaves", [False, True], ids=["it dies", "it leaves"])
async def test_an_engine_is_alive_while_it_tells_a_map_that_lost_it_all_that_it_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """If many engines report at once, that takes longer than a heartbeat lives."""
    monkeypatch.setattr(mirrors, "HEARTBEAT_TTL_S", 0.1)
    await scene.base()
    engine, other = await scene.engine("e-0"), await scene.engine("e-1")
    await scene.begin(engine, other)
    for each, later in ((engine, 0), (other, 1)):
        await each.silence()
        incarnation = each.record().incarnation + later
        await MapReporter(scene.redis, BASE, each.name).tell(incarnation, 9, [], [], over=0)
    await scene.redis.delete(keys.engines(BASE), keys.engine(BASE, "e-0"), keys.engine(BASE, "e-1"))
    mirror = scene.gateway.mirror
    await until(lambda: "e-1" not in mirror.views[BASE].engines)  # its next start is reporting: this one has ended
    assert mirror.views[BASE].engines["e-0"].alive
    await (engine.leave() if leaves else outlive(scene.redis, BASE, "e-0"))
    await until(lambda: "e-0" not in mirror.views[BASE].engines)


async def test_a_map_that_is_flushed_while_it_is_still_told_what_it_lost_goes_on_serving(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "HEARTBEAT_TTL_S", 0.1)
    await scene.base()
    engine, telling, gone = [await scene.engine(f"e-{number}") for number in range(3)]
    await scene.begin(engine, telling, gone)
    for each in (engine, telling, gone):
        await each.silence()
    await MapReporter(scene.redis, BASE, "e-1").tell(telling.record().incarnation, 9, [], [], over=0)
    await scene.redis.delete(keys.engines(BASE))
    await engine.report()
    mirror = scene.gateway.mirror
    await until(lambda: mirror.views[BASE].engines.keys() == {"e-0", "e-1"})  # the map has settled
    await scene.seen(engine)
    monkeypatch.setattr(mirrors, "HEARTBEAT_TTL_S", LIMIT_S)
    await scene.redis.delete(keys.version(BASE), keys.engines(BASE), keys.telling(BASE, "e-1"))
    await until(lambda: mirror.views[BASE].version is None)
    assert [name for name, each in mirror.views[BASE].engines.items() if each.alive] == ["e-0", "e-1"]


class Overtaken(MapReader):
    """Runs `ending`, if set, before it reads which silent engines are reporting, and `naming` after reading bases."""

    ending: Callable[[], Awaitable[None]] | None = None
    naming: Callable[[], Awaitable[None]] | None = None

    async def bases(self) -> list[str]:
        named, naming = await super().bases(), self.naming
        if naming is not None:
            self.naming = None
            await naming()
        return named

    async def telling(self, base: str, engines: Collection[str]) -> dict[str, int]:
        ending = self.ending if engines else None
        if ending is not None:
            self.ending = None
            await ending()
        return await super().telling(base, engines)


async def test_an_engine_that_has_told_all_while_the_map_is_read_is_alive_throughout(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no heartbeat when heartbeats were read, and had finished reporting when that was read."""
    monkeypatch.setattr(mirrors, "HEARTBEAT_TTL_S", 0.0)
    await scene.base()
    engine = await scene.engine("e-0")
    seen: list[int] = []
    reader = Overtaken(scene.redis)

    def look() -> None:
        view = mirror.views[BASE].engines.get("e-0")
        seen.append(view.record.sequence if view is not None and view.alive else 0)

    mirror = mirrors.Mirror(reader, look, lambda: None)
    following = asyncio.create_task(mirror.run())
    try:
        await until(lambda: seen)
        await engine.silence()
        await MapReporter(scene.redis, BASE, "e-0").tell(engine.record().incarnation, 2, [], [], over=0)
        await scene.redis.delete(keys.engines(BASE))
        reader.ending = engine.report
        await until(lambda: seen[-1] == 2)
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert set(seen) == {1, 2}


async def test_a_base_that_is_written_again_while_the_map_is_read_is_there_throughout(scene: Scene) -> None:
    """It was not named yet when the names were read, and had its epoch again when it was read itself."""
    await scene.base()
    reader, seen = Overtaken(scene.redis), list[bool]()
    mirror = mirrors.Mirror(reader, lambda: seen.append(BASE in mirror.views), lambda: None)
    following = asyncio.create_task(mirror.run())
    try:
        await until(lambda: seen)
        await scene.redis.flushall()
        await until(lambda: mirror.views[BASE].version is None)
        reader.naming = scene.base
        await until(lambda: reader.naming is None)
        await until(lambda: not all(seen) or mirror.views[BASE].version)
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert all(seen)


async def test_a_removed_base_leaves_and_a_new_one_comes(scene: Scene) -> None:
    await scene.base()
    await scene.begin()
    await scene.base("demo/other")
    await until(lambda: "demo/other" in scene.gateway.mirror.views)
    await scene.writer.forget(BASE)
    await until(lambda: BASE not in scene.gateway.mirror.views)
    with pytest.raises(errors.BaseModelNotFound):
        await scene.client.answer(question("Ahoy?", base_model=BASE))


async def test_only_what_changed_is_read_again(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{n}") for n in range(3)]
    await scene.begin(*engines)
    before = (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    await engines[0].hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.seen(*engines)
    after = (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert after - before == 1  # one engine's holdings; neither placements nor other engines'


async def test_only_placements_that_changed_are_read_again(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    await scene.place_many([f"demo/a-{number}" for number in range(9)], ["e-0", "e-1"])
    await scene.begin(*engines)
    before = (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    await scene.place("demo/a-0", "e-1")
    await scene.unplace("demo/a-1")
    await scene.place("demo/b", "e-0")
    placements = await MapReader(scene.redis).placements(BASE)
    await until(lambda: scene.gateway.mirror.views[BASE].version == scene.versions[BASE])
    assert scene.gateway.mirror.views[BASE].placements == placements
    after = (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert after - before == 1, "the one that this test made"


async def test_only_holdings_that_changed_are_read_again(scene: Scene) -> None:
    await scene.base()
    await scene.open()
    reporter = MapReporter(scene.redis, BASE, "e-0")
    await reporter.report(record(), [held("a"), held("b")], [], full=True)
    await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].engines)
    before = (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    await reporter.report(record(sequence=2), [held("c")], ["a"], full=False, over=1)
    await until(lambda: scene.gateway.mirror.views[BASE].engines["e-0"].record.sequence == 2)
    assert scene.gateway.mirror.views[BASE].engines["e-0"].held == {"b": held("b"), "c": held("c")}
    assert (await scene.redis.info("commandstats"))["cmdstat_hgetall"]["calls"] == before


async def test_a_record_that_cannot_be_read_keeps_the_last_view_and_spares_other_bases(scene: Scene) -> None:
    await scene.base()
    await scene.base("demo/other")
    engine = await scene.engine("e-0")
    await scene.begin(engine)
    with capture_logs() as logs:
        await scene.redis.set(keys.base_record(BASE), '{"base_model": 7}')
        await scene.redis.incr(keys.version(BASE))
        await scene.base("demo/third")
        await until(lambda: "demo/third" in scene.gateway.mirror.views)
        assert (await scene.client.answer(question("Ahoy?", base_model=BASE))).engine == "e-0"
        await scene.base("demo/fourth")
        await until(lambda: "demo/fourth" in scene.gateway.mirror.views)
    assert len([line for line in logs if line["event"] == "map holds a record that cannot be read"]) == 1
