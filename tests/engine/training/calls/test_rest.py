"""Clients' policies that are not called for a while rest: they use no memory and can resume, over a real socket."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.names import ADAPTER_MAX_LENGTH
from mint_contracts.source import Source
from mint_engine.policies.calls import register
from mint_engine.policies.stored.resting import RestingPolicies, RestingPolicy
from mint_engine.policies.stored.store import store_of
from tests.engine.training.calling import BASE, called, lesson, refused, step
from tests.engine.training.training_engine import Gate, hold_updates
from tests.waiting import until

LONG_S = 60.0


async def test_a_resting_policy_takes_no_memory_and_resumes_where_it_was(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        for name in ("one", "alike"):
            made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4, seed=3))
            await stub.ForwardBackward(lesson(name, 1))
            await stub.OptimStep(step(name, 2))
            await stub.ForwardBackward(lesson(name, 3))
            if name == "one":
                life = made.life
                await scene.server.register.rest(0.0)
                assert scene.residency.lending.room.lasting == 0
                assert scene.server.training_bytes == 0
        assert (await refused(stub.GetPolicy(pb.GetPolicyRequest(policy="one")))).reason == "PolicyNotFound"
        assert (await refused(stub.OptimStep(step("one", 4)))).reason == "PolicyNotFound"
        told = await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one", life=life))
        assert (told.life, told.sequence, told.step) == (life, 3, 1)
        steps = [await stub.OptimStep(step(name, 4)) for name in ("one", "alike")]
        assert steps[0] == steps[1]


async def test_a_resting_policys_revision_stays_served(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        published = await stub.Publish(pb.PublishRequest(policy="one", sequence=1))
        await scene.server.register.rest(0.0)
        await until(lambda: scene.residency.report()["one"].source.uri == published.uri)
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            await other.ResumePolicy(pb.ResumePolicyRequest(policy="one", life=made.life))
            later = await other.Publish(pb.PublishRequest(policy="one", sequence=2))
        here = scene.server.register.context
        assert here is not None
        await here.announcement_cache.look()
        assert scene.residency.report()["one"].source.uri == later.uri, "what another engine has published since"


async def test_policies_that_are_called_or_busy_do_not_rest(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await scene.server.register.rest(LONG_S)
        with Gate() as gate:
            hold_updates(scene, gate)
            learning = asyncio.ensure_future(stub.ForwardBackward(lesson("one", 1)))
            await gate.reached()
            await scene.server.register.rest(0.0)
        assert (await learning).tokens == 3
        assert (await stub.OptimStep(step("one", 2))).step == 1


async def resting(stub: Any, **page: Any) -> list[tuple[str, int, int, int]]:
    """Return the resting policies: name, life, last call number and step of each."""
    told = await stub.ListPolicies(pb.ListPoliciesRequest(resting=True, **page))
    assert {(each.engine, each.base_model) for each in told.policies} <= {("", BASE)}
    return [(each.policy, each.life, each.sequence, each.step) for each in told.policies]


async def test_a_resting_policy_is_listed_until_it_is_resumed_or_dropped(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        lives = {}
        for name in ("a", "team/b", "team/c"):
            lives[name] = (await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4))).life
        await stub.ForwardBackward(lesson("team/b", 1))
        await stub.OptimStep(step("team/b", 2))
        assert await resting(stub) == []
        await scene.server.register.rest(0.0)
        told = [("a", lives["a"], 0, 0), ("team/b", lives["team/b"], 2, 1), ("team/c", lives["team/c"], 0, 0)]
        assert await resting(stub) == told
        assert not (await stub.ListPolicies(pb.ListPoliciesRequest())).policies
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            assert await resting(other) == told, "by any engine of the base"
            await other.ResumePolicy(pb.ResumePolicyRequest(policy="team/b", life=lives["team/b"]))
            assert await resting(stub) == [told[0], told[2]]
        await stub.DropPolicy(pb.DropPolicyRequest(policy="team/c"))
        assert await resting(stub) == told[:1]
        assert (await stub.CreatePolicy(pb.CreatePolicyRequest(policy="a", rank=4))).life > lives["a"]
        assert await resting(stub) == []


async def test_what_an_engine_has_left_as_it_ended_rests_and_is_told_by_pages(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        for name in ("a", "b", "c"):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4))
        await scene.server.register.drain(LONG_S)
    async with called(base, tmp_path, engine="tiny-1") as (_, stub):
        found, token = [], ""
        for _ in range(2):
            page = await stub.ListPolicies(pb.ListPoliciesRequest(resting=True, page_size=2, page_token=token))
            found.append([each.policy for each in page.policies])
            token = page.next_page_token
        assert (found, token) == ([["a", "b"], ["c"]], "")


def test_the_longest_name_after_the_most_calls_can_rest(tmp_path: Path) -> None:
    there = RestingPolicies(store_of(Source(f"file://{tmp_path}")), BASE)
    rests = RestingPolicy("a/" + "b" * (ADAPTER_MAX_LENGTH - 2), (1 << 44) - 1, 99_999_999, 99_999_999)
    earlier = msgspec.structs.replace(rests, life=1)
    for each in (rests, earlier):
        there.note(each)
    assert there.after("") == [rests]
    assert there.after(rests.policy) == []
    there.forget(rests)
    assert there.after("") == [earlier]


async def test_a_policy_that_cannot_be_saved_stays_in_memory(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        for name in ("one", "two"):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4))
        (tmp_path / "runs").rename(tmp_path / "away")
        await scene.server.register.rest(0.0)
        (tmp_path / "away").rename(tmp_path / "runs")
        for name in ("one", "two"):
            assert (await stub.ForwardBackward(lesson(name, 1))).tokens == 3
        await scene.server.register.rest(0.0)
        assert not scene.server.register.made()


async def test_what_was_left_within_a_step_takes_no_memory_for_ever_and_its_program_goes_on_from_what_it_saved(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
        await scene.context.step_thread.call(lambda trainer: setattr(trainer.policy("one"), "torn", True))
        await scene.server.register.rest(0.0)
        assert scene.server.training_bytes == scene.residency.lending.room.lasting == 0
        resume = pb.ResumePolicyRequest(policy="one", life=made.life)
        assert "resume it by name alone" in (await refused(stub.ResumePolicy(resume))).message
        assert (await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one"))).sequence == 1


async def test_a_drop_that_comes_meanwhile_is_no_less_of_one(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        there = scene.server.register
        await asyncio.gather(there.rest(0.0), there.drop("one"))  # the first runs, the second waits for it
        resume = pb.ResumePolicyRequest(policy="one", life=made.life)
        assert (await refused(stub.ResumePolicy(resume))).reason == "PolicyNotFound"
        assert (await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=8))).life > made.life


async def test_an_engine_looks_for_them_by_itself(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "REST_S", 0.0)
    async with called(base, tmp_path) as (scene, stub):
        looking = asyncio.create_task(scene.server.register.run(look_s=0.01))
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await until(lambda: not scene.server.register.made())
        looking.cancel()
