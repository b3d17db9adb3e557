"""Clients' policies outlive an engine that is told to end: another engine resumes them, over a real socket."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import Overloaded
from mint_engine.residency.policy_memory import PolicyMemory
from tests.engine.training.calling import called, fail_after_records, lesson, refused, resume, step, taught
from tests.engine.training.training_engine import Gate, hold_updates

LIMIT_S = 60.0  # only a failing test waits this long


async def test_another_engine_goes_on_where_one_that_was_told_to_end_has_left_off(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await taught(stub, "one")
        new = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="new", rank=4))
        await scene.server.register.drain(LIMIT_S)
        for call in (
            stub.OptimStep(step("one", 4)),
            stub.CreatePolicy(pb.CreatePolicyRequest(policy="two")),
            stub.ResumePolicy(resume("two")),
        ):
            error = await refused(call)
            assert (error.reason, error.retry_after_s) == ("Draining", 1.0)
    async with called(base, tmp_path) as (_, stub):
        told = await stub.ResumePolicy(resume("one", made.life))
        assert (told.life, told.sequence, told.step) == (made.life, 3, 1)
        assert told.lease > made.lease
        assert await stub.ResumePolicy(resume("one", made.life)) == told, "again, it changes nothing"
        assert (await refused(stub.ResumePolicy(resume("one", made.life + 1)))).reason == "PolicyNotFound"
        await taught(stub, "alike")
        steps = [await stub.OptimStep(step(name, 4)) for name in ("one", "alike")]
        assert steps[0] == steps[1]
        assert (await stub.ResumePolicy(resume("new", new.life))).sequence == 0
        assert (await stub.ForwardBackward(lesson("new", 1, life=new.life))).tokens == 3


async def test_what_was_resumed_and_dropped_does_not_come_back_by_itself(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await taught(stub, "one")
        await scene.server.register.drain(LIMIT_S)
    async with called(base, tmp_path) as (_, stub):
        await stub.ResumePolicy(resume("one", made.life))
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=made.life))
        error = await refused(stub.ResumePolicy(resume("one", made.life)))
        assert (error.reason, "resume it by name alone, or create it" in error.message) == ("PolicyNotFound", True)
        assert (await stub.ResumePolicy(resume("one"))).sequence == 3, "whoever asks for it by its name has it"


async def test_what_was_left_and_dropped_before_anybody_resumed_it_stays_dropped(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        lives = [(await taught(stub, name)).life for name in ("one", "two")]
        await scene.server.register.drain(LIMIT_S)
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))
    async with called(base, tmp_path) as (_, stub):
        await stub.DropPolicy(pb.DropPolicyRequest(policy="two"))
        for name, life in zip(("one", "two"), lives, strict=True):
            assert (await refused(stub.ResumePolicy(resume(name, life)))).reason == "PolicyNotFound"


async def test_a_drop_says_whether_there_was_such_a_policy_and_does_no_harm_again(base: Path, tmp_path: Path) -> None:
    async def unknown(stub: Any, *policies: str) -> list[bool]:
        return [(await stub.DropPolicy(pb.DropPolicyRequest(policy=each))).unknown for each in policies]

    async with called(base, tmp_path) as (scene, stub):
        for name in ("here", "left", "published", "saved"):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4))
        await stub.Publish(pb.PublishRequest(policy="published", sequence=1))
        await stub.SaveState(pb.SaveStateRequest(policy="saved", sequence=1))
        assert await unknown(stub, "here", "here", "mistyped") == [False, True, True]
        assert await unknown(stub, "saved", "saved") == [False, True], "its files stay, and it can be resumed by name"
        await scene.server.register.drain(LIMIT_S)
        scene.server.register._calls.clear()
    async with called(base, tmp_path) as (_, stub):
        assert await unknown(stub, "left", "left") == [False, True]
        assert await unknown(stub, "published", "published") == [False, True]
        assert (await stub.ResumePolicy(resume("saved"))).sequence == 1


async def test_what_was_left_does_not_come_back_behind_a_later_policy_of_its_name(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        left = await taught(stub, "one")
        await scene.server.register.drain(LIMIT_S)
    async with called(base, tmp_path) as (_, stub):
        later = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=8))
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=later.life))
        assert (await refused(stub.ResumePolicy(resume("one", left.life)))).reason == "PolicyNotFound"


async def test_a_policy_just_saved_or_resumed_is_released_too(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await taught(stub, "one")
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=4))
        await scene.server.register.drain(LIMIT_S)
    for _ in range(2):
        async with called(base, tmp_path) as (scene, stub):
            assert (await stub.ResumePolicy(resume("one", made.life))).sequence == 4
            await scene.server.register.drain(LIMIT_S)


async def test_what_is_left_comes_after_a_save_that_failed_although_it_was_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client sends that call again, to another engine by then."""
    again = pb.SaveStateRequest(policy="one", sequence=4)
    async with called(base, tmp_path) as (scene, stub):
        made = await taught(stub, "one")
        with monkeypatch.context() as patch:
            fail_after_records(patch)
            assert (await refused(stub.SaveState(again))).reason == "SourceUnavailable"
        await scene.server.register.drain(LIMIT_S)
    async with called(base, tmp_path) as (_, stub):
        assert (await stub.ResumePolicy(resume("one", made.life))).sequence == 3
        await stub.SaveState(again)
        assert (await stub.OptimStep(step("one", 5))).step == 2


async def test_a_killed_engine_has_left_what_its_programs_have_saved(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        made = await taught(stub, "one")
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=4))
        await stub.OptimStep(step("one", 5))
    async with called(base, tmp_path) as (_, stub):
        assert (await refused(stub.ResumePolicy(resume("one", made.life)))).reason == "PolicyNotFound"
        told = await stub.ResumePolicy(resume("one"))
        assert (told.life, told.sequence, told.step) == (made.life, 4, 1)
        error = await refused(stub.OptimStep(step("one", 6)))
        assert (error.reason, "the next is 5" in error.message) == ("OutOfOrder", True)
        assert (await stub.OptimStep(step("one", 5))).step == 2
        error = await refused(stub.ResumePolicy(resume("other")))
        assert (error.reason, "has no saved state to resume from" in error.message) == ("PolicyNotFound", True)


async def test_policies_without_memory_are_left_for_the_next_try(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Overloaded("engine", "has no memory left", retry_after_s=1.0)

    async with called(base, tmp_path) as (scene, stub):
        made = await taught(stub, "one")
        await scene.server.register.drain(LIMIT_S)
    async with called(base, tmp_path) as (_, stub):
        with monkeypatch.context() as patch:
            patch.setattr(PolicyMemory, "take", full)
            assert (await refused(stub.ResumePolicy(resume("one", made.life)))).reason == "Overloaded"
        assert (await refused(stub.GetPolicy(pb.GetPolicyRequest(policy="one")))).reason == "PolicyNotFound"
        assert (await stub.ResumePolicy(resume("one", made.life))).sequence == 3


async def test_an_engine_does_not_wait_longer_than_it_has_for_what_is_under_way(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        with Gate() as gate:
            hold_updates(scene, gate)
            learning = asyncio.ensure_future(stub.ForwardBackward(lesson("one", 1)))
            await gate.reached()
            await scene.server.register.drain(0.01)
            late = asyncio.ensure_future(stub.OptimStep(step("one", 2)))
        await learning
        assert (await refused(late)).reason == "Draining", "no more is taken, though what is under way goes on"
        await asyncio.wait(scene.server.register._saving)
    async with called(base, tmp_path) as (_, stub):
        assert (await stub.ResumePolicy(resume("one", made.life))).sequence == 1


async def test_a_lost_engine_takes_no_more_calls_of_a_policy_that_it_does_not_save(
    base: Path, tmp_path: Path
) -> None:
    """Such a call would be acknowledged, and then lost with the engine."""
    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        with Gate() as gate:
            hold_updates(scene, gate)
            learning = asyncio.ensure_future(stub.ForwardBackward(lesson("one", 1)))
            await gate.reached()
            with capture_logs() as logs:
                await scene.server.register.drain(LIMIT_S, lambda: True)
            late = asyncio.ensure_future(stub.OptimStep(step("one", 2)))
        await learning
        assert (await refused(late)).reason == "Draining"
    (told,) = [each for each in logs if each["event"] == "policies_lost"]
    assert told["policies"] == ["one"]
    assert "a call under way" in told["reason"]


async def test_an_engine_that_started_earlier_goes_on_where_a_younger_one_died(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, elder):
        async with called(base, tmp_path) as (_, younger):
            await younger.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
            saved = await younger.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
        await elder.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await elder.LoadState(pb.LoadStateRequest(policy="one", sequence=1, uri=saved.uri))
        again = await elder.SaveState(pb.SaveStateRequest(policy="one", sequence=2))
        assert again.uri > saved.uri
