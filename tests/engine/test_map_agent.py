"""The engine's link to the placement map, over a real Redis that comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
import torch

from mint_contracts import keys
from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter, ReportReply
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import Assignment, EngineRecord, EngineView, Held, MapChange, Tier
from mint_contracts.source import Source
from mint_engine import agent as agents
from mint_engine.agent import Agent, Body
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.residency.slots import Slots
from tests.engine.made import edit_config, peft_adapter, tiny_fit
from tests.engine_views import engine_record, engine_views
from tests.redis_process import RedisProcess, patient
from tests.relay import relaying
from tests.waiting import until

BASE, ENGINE = "default/tiny", "tiny-0"


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that a test may kill."""
    (tmp_path / "redis").mkdir()
    with RedisProcess(tmp_path / "redis") as process:
        yield process


class Engine:
    """A real residency with its agent, as in the engine's process."""

    def __init__(self, folder: Path, redis_url: str, incarnation: int) -> None:
        slots = Slots(tiny_fit().modules, 2, 16, torch.float32, torch.device("cpu"))
        disk = DiskTier(folder / f"disk-{incarnation}", 1 << 20)
        self.residency = Residency(slots, Loader(disk, tiny_fit(), torch.float32), HostTier(1 << 20))
        self.incarnation = incarnation
        self.redis = patient(redis_url)
        self.agent = Agent(self.redis, BASE, ENGINE, Body(self._describe, self.residency.report, self.residency.want))
        self.residency.on_change = self.agent.changed
        self.ready = True

    def _describe(self, map_version: int, sequence: int) -> EngineRecord:
        table = self.residency.slots
        own = {"incarnation": self.incarnation, "ready": self.ready, "slots_used": table.count - len(table.free)}
        return engine_record(ENGINE, slots_total=table.count, map_version=map_version, sequence=sequence, **own)

    async def __aenter__(self) -> "Engine":
        self.residency.start()
        self.running = asyncio.create_task(self.agent.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.residency.close()
        await self.redis.aclose()


class Map:
    """The map as the operator and a gateway see it."""

    def __init__(self, url: str, epoch: int = 1) -> None:
        self.redis = patient(url)
        self.reader, self.writer = MapReader(self.redis), MapWriter(self.redis, epoch)

    async def engine(self) -> EngineView | None:
        return next(iter(await engine_views(self.reader, BASE)), None)

    async def told(self, *, slots_used: int, map_version: int) -> EngineView | None:
        """The engine once its record says this: copies are reported as they arrive, the record with a heartbeat."""
        view = await self.engine()
        record = view.record if view else None
        return view if record and (record.slots_used, record.map_version) == (slots_used, map_version) else None

    async def tier(self, adapter: str) -> Tier | None:
        view = await self.engine()
        return view.held[adapter].tier if view and adapter in view.held else None


class Door:
    """An engine's own access to Redis, which can be shut while the operator's stays open."""

    def __init__(self, there: Map, url: str) -> None:
        self._there, self.url = there, url.replace("redis://", "redis://engine:secret@")

    async def open(self) -> None:
        await self._there.redis.acl_setuser(
            "engine", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"], channels=["*"]
        )

    async def shut(self) -> None:
        await self._there.redis.acl_setuser("engine", enabled=False)
        await self._there.redis.client_kill_filter(user="engine")


@pytest.fixture
async def there(redis_process: RedisProcess) -> AsyncIterator[Map]:
    here = Map(redis_process.url)
    yield here
    await here.redis.aclose()


@pytest.fixture
def want(tmp_path: Path) -> Assignment:
    peft_adapter(tmp_path / "store" / "one")
    return Assignment("team/one", Source(f"file://{tmp_path}/store/one"), Tier.DEVICE, ("default/wave",))


async def is_tier(there: Map, adapter: str, tier: Tier | None) -> None:
    async def look() -> bool:
        try:
            return await there.tier(adapter) is tier
        except MapUnavailable:  # this test's own connections end with Redis, too
            return False

    await until(look)


async def test_assigned_adapters_are_loaded_and_reported_and_others_freed(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        version = await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))
        await is_tier(there, "team/one", Tier.DEVICE)
        view = await until(lambda: there.told(slots_used=1, map_version=version))
        assert view.held["team/one"].revision.startswith("sha256:")

        await there.writer.apply(BASE, MapChange(del_assigned={ENGINE: ("team/one",)}))
        await is_tier(there, "team/one", None)
        await until(lambda: len(engine.residency.slots.free) == 2)


async def test_an_engine_that_was_away_as_its_wave_went_lets_go_of_its_copies_when_it_is_back(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    """A wave's assignments vanish from the map with it, and an engine without a connection is not told."""
    door = Door(there, redis_process.url)
    await door.open()
    async with Engine(tmp_path, door.url, incarnation=1) as engine:
        await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))
        await is_tier(there, "team/one", Tier.DEVICE)
        with structlog.testing.capture_logs() as logs:
            await door.shut()
            await until(lambda: any(line["event"] == "map_lost" for line in logs))
        await there.redis.delete(keys.engine(BASE, ENGINE))  # as when its heartbeat has expired
        version = await there.writer.apply(BASE, MapChange(del_assigned={ENGINE: ("team/one",)}))
        async with engine.residency.hold("team/one") as held:
            assert held.revision, "it goes on serving by the map that it last read"
        assert len(engine.residency.slots.free) == 1
        await door.open()
        await until(lambda: there.told(slots_used=0, map_version=version))
        await is_tier(there, "team/one", None)
        assert "team/one" not in engine.residency.report()
        assert len(engine.residency.slots.free) == 2


async def test_a_map_that_was_lost_means_nothing_is_known_not_that_nothing_is_wanted(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))
        await is_tier(there, "team/one", Tier.DEVICE)
        with structlog.testing.capture_logs() as logs:
            redis_process.kill()
            await until(lambda: any(line["event"] == "map_lost" for line in logs))
            async with engine.residency.hold("team/one") as held:
                assert held.revision, "requests are answered while Redis is away"
            redis_process.start()
            await is_tier(there, "team/one", Tier.DEVICE)  # reported again, in full, to an empty Redis
            assert await there.reader.version(BASE) is None
            await until(lambda: any(line["event"] == "map_back" for line in logs))
        assert len([line for line in logs if line["event"] == "map_lost"]) == 1, "one line an outage"
        assert len(engine.residency.slots.free) == 1

        # The operator writes the map again, reaching the same version with different content.
        await there.writer.apply(BASE, MapChange(set_placements=()))
        await is_tier(there, "team/one", None)


async def test_a_new_reason_why_redis_is_away_is_logged_again(redis_process: RedisProcess, tmp_path: Path) -> None:
    """Otherwise nobody would learn that Redis is back with a password that this engine does not know."""
    async with Engine(tmp_path, redis_process.url, incarnation=1):
        with structlog.testing.capture_logs() as logs:
            redis_process.kill()
            await until(lambda: any(line["event"] == "map_lost" for line in logs))
            with RedisProcess(tmp_path / "redis", "--requirepass", "rotated", port=redis_process.port):
                await until(lambda: any("Redis refuses the password" in line.get("error", "") for line in logs))
    told = [(line["event"], line["error"]) for line in logs if line["event"] in {"map_lost", "map_still_lost"}]
    assert [event for event, _ in told] == ["map_lost", *["map_still_lost"] * (len(told) - 1)]
    assert len(set(told)) == len(told), "each once"


async def test_a_map_that_is_flushed_hears_everything_again(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    async with Engine(tmp_path, redis_process.url, incarnation=1):
        await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))
        await is_tier(there, "team/one", Tier.DEVICE)
        await there.redis.flushall()  # a heartbeat may come right after it
        await is_tier(there, "team/one", Tier.DEVICE)


async def test_a_redis_that_comes_back_without_what_it_was_told_last_hears_it_again(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    """As with a Redis that syncs its disk once a second, or a replica that took over: it still knows the engine."""
    door = Door(there, redis_process.url)
    await door.open()
    async with Engine(tmp_path, door.url, incarnation=1):
        await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))
        await is_tier(there, "team/one", Tier.DEVICE)
        for _ in range(3):  # whichever of its connections the engine uses next
            before = await there.engine()
            await there.redis.hdel(keys.held(BASE, ENGINE), "team/one")
            await there.redis.client_kill_filter(user="engine")
            await is_tier(there, "team/one", Tier.DEVICE)
            after = await there.engine()
            assert before is not None
            assert before.record is not None
            assert after is not None
            assert after.record is not None
            assert after.record.sequence > before.record.sequence  # so that whoever read it meanwhile reads it again


async def test_changes_are_told_without_waiting_for_a_heartbeat(
    there: Map, redis_process: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "HEARTBEAT_S", 3600.0)
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        assert await engine.agent.tell(60)
        await until(there.engine)
        engine.ready = False
        assert await engine.agent.tell(60)
        view = await there.engine()
        assert view is not None
        assert view.record is not None
        assert not view.record.ready


async def test_without_changes_the_heart_beats(there: Map, redis_process: RedisProcess, tmp_path: Path) -> None:
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        assert await engine.agent.tell(60)
        key, longer_ms = keys.engine(BASE, ENGINE), 3_600_000
        assert await there.redis.pexpire(key, longer_ms)

        async def beaten() -> bool:
            return 0 < await there.redis.pttl(key) < longer_ms / 2

        await until(beaten)


async def test_an_adapter_whose_files_hold_no_text_is_told_as_refused_and_the_heart_beats_on(
    there: Map, redis_process: RedisProcess, tmp_path: Path, want: Assignment
) -> None:
    edit_config(tmp_path / "store" / "one", **{"\ud800": 1})
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        await there.writer.apply(BASE, MapChange(set_assigned={ENGINE: (want,)}))

        async def refused() -> bool:
            assert not engine.running.done()
            view = await there.engine()
            failure = view.held["team/one"].failure if view is not None and "team/one" in view.held else None
            return failure is not None and failure.reason == "UnsupportedAdapter"

        await until(refused)
        assert await engine.agent.tell(60)


async def test_an_older_start_of_the_same_engine_is_told_to_end(
    there: Map, redis_process: RedisProcess, tmp_path: Path
) -> None:
    # Nanoseconds beyond a double's precision, one apart: the fence must tell them apart.
    now = 1_764_000_000_000_000_001
    async with Engine(tmp_path, redis_process.url, incarnation=now) as old:
        await old.agent.tell(60)
        async with Engine(tmp_path, redis_process.url, incarnation=now + 1) as new:
            assert await new.agent.tell(60)
            with pytest.raises(StaleEpoch):
                await asyncio.wait_for(old.running, 60)
            view = await there.engine()
            assert view is not None
            assert view.record is not None
            assert view.record.incarnation == now + 1


async def test_leaving_ends_the_heartbeat_now(there: Map, redis_process: RedisProcess, tmp_path: Path) -> None:
    async with Engine(tmp_path, redis_process.url, incarnation=1) as engine:
        assert await engine.agent.tell(60)
        engine.running.cancel()
        await asyncio.wait({engine.running})
        await engine.agent.leave()
        view = await there.engine()
        assert view is not None
        assert view.record is None


class Speaking:
    """An agent that reports `holdings`, and a record of what it sent: changes, removals, and whether in full."""

    def __init__(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holdings = {name: Held(name, Source(f"s3://b/{name}"), Tier.HOST) for name in "ab"}
        self.sent: list[tuple[list[str], list[str], bool]] = []
        self.sequences: list[int] = []
        self.redis = patient(redis_url)
        self.agent = Agent(
            self.redis, BASE, ENGINE, Body(self._describe, lambda: dict(self.holdings), lambda _: None)
        )
        report = MapReporter.report

        async def watched(
            reporter: MapReporter,
            record: EngineRecord,
            changed: list[Held],
            gone: list[str],
            *,
            full: bool,
            over: int,
        ) -> ReportReply:
            self.sent.append(([each.adapter for each in changed], list(gone), full))
            return await report(reporter, record, changed, gone, full=full, over=over)

        monkeypatch.setattr(MapReporter, "report", watched)

    def _describe(self, map_version: int, sequence: int) -> EngineRecord:
        self.sequences.append(sequence)
        return engine_record(ENGINE, map_version=map_version, sequence=sequence)

    def change(self) -> None:
        self.holdings["a"] = msgspec.structs.replace(self.holdings["a"], tier=Tier.DEVICE)
        del self.holdings["b"]

    async def __aenter__(self) -> "Speaking":
        self.running = asyncio.create_task(self.agent.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.redis.aclose()


async def test_only_what_changed_is_sent(
    there: Map, redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Speaking(redis_process.url, monkeypatch) as speaking:
        assert await speaking.agent.tell(60)
        speaking.change()
        assert await speaking.agent.tell(60)
        assert await speaking.agent.tell(60)
    assert speaking.sent[0] == (["a", "b"], [], True)
    assert [each for each in speaking.sent[1:] if each[0] or each[1]] == [(["a"], ["b"], False)]
    assert speaking.sequences[-1] == 2
    assert await there.tier("a") is Tier.DEVICE
    assert await there.tier("b") is None


async def test_an_outage_that_the_map_outlives_is_no_reason_to_tell_it_all_again(
    there: Map, redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relaying(f"127.0.0.1:{redis_process.port}") as relay:
        async with Speaking(f"redis://127.0.0.1:{relay.port}/0", monkeypatch) as speaking:
            assert await speaking.agent.tell(60)
            with structlog.testing.capture_logs() as logs:
                relay.heal()  # which ends its connections
                await until(lambda: any(line["event"] == "map_lost" for line in logs))
            speaking.change()
            assert await speaking.agent.tell(60)
    assert [full for _, _, full in speaking.sent].count(True) == 1
    assert await there.tier("a") is Tier.DEVICE
    assert await there.tier("b") is None
