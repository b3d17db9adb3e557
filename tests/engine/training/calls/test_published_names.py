"""Engines that start later find what clients have published by its name, over real sockets."""

import asyncio
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import AdapterNotFound
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import Held, Tier
from mint_contracts.settings import REDIS_URL
from mint_contracts.source import Source
from mint_engine import process
from mint_engine.environment import Start
from mint_engine.policies.stored import announcement_cache
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.serve import listen
from tests.engine.running import settings_for
from tests.engine.training.calling import BASE, called, lesson, refused, step
from tests.engine.training.recorded_store import Asked
from tests.engine.training.training_engine import assignment, train
from tests.engine_views import engine_record
from tests.redis_process import patient
from tests.waiting import until


async def test_what_is_published_is_known_by_its_name_to_engines_that_start_later_until_it_is_dropped(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (_, stub):
        life = (await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))).life
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        published = await stub.Publish(pb.PublishRequest(policy="one", sequence=3))
    async with called(base, tmp_path) as (scene, stub):
        async with scene.residency.hold("one") as held:
            assert held.revision == published.revision
        later = (await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))).life
        assert (await refused(stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=life)))).reason == (
            "PolicyNotFound"
        )
        assert scene.residency.report()["one"].published, "of this name another policy is here now"
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=later))
        assert "one" not in {name for name, each in scene.residency.report().items() if each.published}
    async with called(base, tmp_path) as (scene, _):
        with pytest.raises(AdapterNotFound):
            async with scene.residency.hold("one"):
                pass


async def test_a_wave_that_takes_a_name_over_leaves_nothing_of_what_calls_have_published(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.Publish(pb.PublishRequest(policy="one", sequence=1))
    async with called(base, tmp_path) as (scene, _):
        assert scene.residency.report()["one"].published
        await scene.complete("one", lease=time.time_ns() // 1_000_000)
        cache = AnnouncementCache(scene.store, BASE, "tiny-1")
        await cache.look()
        assert cache.known == {}


async def test_one_listing_of_what_calls_have_published_does_for_a_wave(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = [f"policy-{number}" for number in range(8)]
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy=wave[5], rank=4))
        await stub.Publish(pb.PublishRequest(policy=wave[5], sequence=1))
    asked = Asked()
    # Some policies wait for others' slots; by the time they start, one earlier listing must suffice.
    async with called(base, tmp_path, device_slots=3) as (scene, _):
        monkeypatch.setattr(announcement_cache, "store_of", asked.store_of)
        scene.want(*(assignment(policy, lease=time.time_ns() // 1_000_000) for policy in wave), told=train(steps=1))
        await scene.ended(*wave)
    of_one = [what for what, path in asked if f"{wave[5]}@" in path]
    assert of_one == ["read", "delete"]
    assert [what for what, path in asked if path == f"announced/{BASE}"] == ["names"] * 2, (
        "one is the published one's"
    )
    assert len(asked) == 4


@pytest.mark.parametrize("left", ["published", "saved"])
async def test_a_new_policy_is_later_than_any_of_its_name_though_its_engine_s_clock_is_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Another engine's clock was ahead of its own, or its own was set back."""
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 3600 * 10**9)
    async with called(base, tmp_path, engine="tiny-1") as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        if left == "published":
            await stub.Publish(pb.PublishRequest(policy="one", sequence=1))
        else:
            await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
        await stub.Publish(pb.PublishRequest(policy="one", sequence=2))


async def test_a_name_keeps_its_meaning_over_a_start_while_the_store_is_away(
    tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnnouncementCache.first, "__defaults__", (0.0,))
    monkeypatch.setenv(REDIS_URL, redis_server)
    away, source = Source(f"file://{tmp_path}/away"), Source("s3://models/revisions/one/.published/1-1")
    told = replace(settings_for(tmp_path), base_model="default/kept", training_store=away)
    redis = patient(redis_server)
    before = engine_record("tiny-0")
    held = [Held("one", source, Tier.DEVICE, published=True), Held("of/a-wave", source, Tier.DEVICE)]
    await MapReporter(redis, told.base_model, "tiny-0").report(before, held, (), full=True)
    server = await listen(told, "tiny-0", 0)
    engine = process.Process(Start(told, "tiny-0", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
    following = asyncio.create_task(engine.follow())

    async def reported() -> dict[str, Held] | None:
        pulse = await MapReader(redis).pulse(told.base_model)
        record = pulse.engines["tiny-0"]
        again = record is not None and record.incarnation > before.incarnation
        return await MapReader(redis).held(told.base_model, "tiny-0") if again else None

    try:
        assert await until(reported) == {"one": Held("one", source, Tier.REMOTE, published=True)}
    finally:
        following.cancel()
        await asyncio.wait({following})
        await server.drain(0.0)
        await redis.aclose()
