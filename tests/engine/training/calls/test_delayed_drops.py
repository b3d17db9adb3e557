"""A client's policy dropped while its store is away is gone; the store is told later. All over a real socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mint_contracts import training_pb2 as pb
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.policies.stored.store import LocalStore
from tests.engine.training.calling import BASE, away, called, lesson, refused, resume
from tests.engine.training.training_engine import Scene

CREATE, DROP = pb.CreatePolicyRequest(policy="one", rank=4), pb.DropPolicyRequest(policy="one")


@contextmanager
def store_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "names", away)
        yield


async def announced(scene: Scene) -> set[str]:
    """Return the announced names that an engine starting now would find."""
    cache = AnnouncementCache(scene.store, BASE, "tiny-9")
    await cache.look()
    return {*cache.known}


async def published(stub: Any) -> pb.PolicyState:
    """Create the policy and publish it once."""
    made: pb.PolicyState = await stub.CreatePolicy(CREATE)
    await stub.Publish(pb.PublishRequest(policy="one", sequence=1))
    return made


async def test_it_takes_no_memory_from_then_on_and_is_neither_there_nor_listed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(CREATE)
        with store_away(monkeypatch):
            assert (await refused(stub.DropPolicy(DROP))).reason == "SourceUnavailable"
            assert scene.server.training_bytes == scene.residency.lending.room.lasting == 0
            assert not (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
            for call in (stub.GetPolicy(pb.GetPolicyRequest(policy="one")), stub.ForwardBackward(lesson("one", 1))):
                assert (await refused(call)).reason == "PolicyNotFound"


async def test_its_name_is_to_be_asked_for_again_until_the_store_knows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await published(stub)
        with store_away(monkeypatch):
            await refused(stub.DropPolicy(DROP))
            for call in (stub.CreatePolicy(CREATE), stub.ResumePolicy(resume("one"))):
                error = await refused(call)
                assert (error.reason, "is being dropped" in error.message) == ("EngineUnavailable", True)
                assert error.retry_after_s
        assert (await stub.CreatePolicy(CREATE)).life > made.life
        assert await announced(scene) == set()


async def test_the_engine_tells_the_store_by_itself_once_it_answers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await published(stub)
        await scene.server.register.rest(0.0)
        await stub.ResumePolicy(resume("one", made.life))
        with store_away(monkeypatch):
            await refused(stub.DropPolicy(DROP))
            await scene.server.register.rest(0.0)
        assert await announced(scene) == {"one"}
        await scene.server.register.rest(0.0)
        assert await announced(scene) == set()
        assert (await refused(stub.ResumePolicy(resume("one", made.life)))).reason == "PolicyNotFound"


async def test_a_delayed_drop_spares_a_later_policy_of_the_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await published(stub)
        with store_away(monkeypatch):
            await refused(stub.DropPolicy(DROP))
        async with called(base, tmp_path, engine="tiny-1") as (there, other):
            later = await published(other)
            await there.server.register.rest(0.0)
            await scene.server.register.rest(0.0)
            assert await announced(scene) == {"one"}
            assert (await other.ResumePolicy(resume("one", later.life))).sequence == 1


async def test_a_drop_that_is_asked_for_again_is_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await published(stub)
        with store_away(monkeypatch):
            for _ in range(2):
                assert (await refused(stub.DropPolicy(DROP))).reason == "SourceUnavailable"
        await stub.DropPolicy(DROP)
        assert await announced(scene) == set()


async def test_a_wave_that_takes_the_name_leaves_nothing_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await published(stub)
        with store_away(monkeypatch):
            await refused(stub.DropPolicy(DROP))
        await scene.server.register.give_way("one", 0.0)
        assert await announced(scene) == set()
