"""What an engine tells of the policies that calls train on it, over a real socket."""

import asyncio
from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from tests.engine.running import save_base
from tests.engine.training.calling import called, lesson, refused, step
from tests.engine.training.teaching import Gate, hold_updates


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


async def test_how_far_policies_have_come_is_told_while_they_learn(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = [await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4)) for name in ("two", "one")]
        assert made[0] == pb.PolicyState(policy="two", life=made[0].life, engine="tiny-0", base_model="tests/tiny")
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
