"""What an engine reports about the policies that clients train on it, over a real socket."""

import asyncio
from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from mint_engine.policies.calls import calls
from mint_engine.policies.stored.announcements import Announcements
from tests.engine.training.calling import away, called, lesson, refused, step
from tests.engine.training.training_engine import Gate, hold_updates


async def test_how_far_policies_have_come_is_told_while_they_learn(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = [await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4)) for name in ("two", "one")]
        assert (made[0].engine, made[0].base_model, made[0].lease) == ("tiny-0", "tests/tiny", made[0].life)
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        with Gate() as gate:
            hold_updates(scene, gate)
            learning = asyncio.ensure_future(stub.ForwardBackward(lesson("one", 3)))
            await gate.reached()
            told = await stub.GetPolicy(pb.GetPolicyRequest(policy="one"))
            assert (told.sequence, told.step, told.life) == (2, 1, made[1].life)
        await learning
        assert [each.policy for each in (await stub.ListPolicies(pb.ListPoliciesRequest())).policies] == [
            "one",
            "two",
        ]
        error = await refused(stub.GetPolicy(pb.GetPolicyRequest(policy="one", life=made[0].life)))
        assert error.reason == "PolicyNotFound"


async def test_another_call_of_a_number_is_no_repeat(base: Path, tmp_path: Path) -> None:
    """A restarted client may have asked for the policy's state while a call of its predecessor was still running."""
    async with called(base, tmp_path) as (_, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        first = await stub.ForwardBackward(lesson("one", 1))
        for other in (stub.ForwardBackward(lesson("one", 1, clip_low=0.1)), stub.OptimStep(step("one", 1))):
            error = await refused(other)
            assert error.reason == "OutOfOrder"
            assert "call 1 was already used for a different request; the next is 2 (another program" in error.message
            assert error.message.endswith("continue with what GetPolicy returns)")
        again = lesson("one", 1, life=made.life, base_model="tests/tiny")
        assert await stub.ForwardBackward(again) == first, "it is the same, told by another way"


async def test_a_dropped_policy_is_gone_before_its_store_knows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        with monkeypatch.context() as patch:
            patch.setattr(Announcements, "withdraw", away)
            assert (await refused(stub.DropPolicy(pb.DropPolicyRequest(policy="one")))).reason == "SourceUnavailable"
        for call in (
            stub.GetPolicy(pb.GetPolicyRequest(policy="one")),
            stub.ResumePolicy(pb.ResumePolicyRequest(policy="one")),
            stub.ForwardBackward(lesson("one", 1)),
        ):
            assert (await refused(call)).reason == "PolicyNotFound"
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))
        assert (await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))).sequence == 0


async def test_calls_that_mean_another_base_are_refused(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        request = pb.CreatePolicyRequest(policy="one", base_model="tests/tiny")
        await stub.CreatePolicy(request)
        for other in (
            stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", base_model="tests/other")),
            stub.ForwardBackward(lesson("one", 1, base_model="tests/other")),
            stub.ListPolicies(pb.ListPoliciesRequest(base_model="tests/other")),
        ):
            error = await refused(other)
            assert (error.reason, "this engine has tests/tiny" in error.message) == ("BaseModelNotFound", True)


async def test_answers_are_remembered_up_to_so_many_bytes_and_the_last_one_always(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        first = await stub.ForwardBackward(lesson("one", 1))
        monkeypatch.setattr(calls, "REMEMBERED_BYTES", 2 * first.ByteSize())
        answers = [first, *[await stub.ForwardBackward(lesson("one", at)) for at in (2, 3)]]
        assert (await refused(stub.ForwardBackward(lesson("one", 1)))).reason == "OutOfOrder"
        assert [await stub.ForwardBackward(lesson("one", at)) for at in (2, 3)] == answers[1:]
        monkeypatch.setattr(calls, "REMEMBERED_BYTES", 0)
        last = await stub.ForwardBackward(lesson("one", 4))
        assert (await refused(stub.ForwardBackward(lesson("one", 3)))).reason == "OutOfOrder"
        assert await stub.ForwardBackward(lesson("one", 4)) == last
