"""A base is set otherwise while policies of it rest: they go on with what it still takes, and are refused by name."""

from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from tests.engine.running import save_base
from tests.engine.training.calling import called, lesson, refused, step


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


async def test_a_saved_policy_of_a_rank_that_slots_take_no_more_is_refused_before_it_learns(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=16))
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3))
    async with called(base, tmp_path, max_rank=8) as (_, stub):
        error = await refused(stub.ResumePolicy(pb.ResumePolicyRequest(policy="one")))
        assert (error.reason, error.subject) == ("RankTooLarge", "policy one")
        assert "rank 16; the base model takes up to 8. Raise adapters.maxRank" in error.message
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=8))
        error = await refused(stub.LoadState(pb.LoadStateRequest(policy="one", sequence=1, uri=saved.uri)))
        assert (error.reason, error.subject) == ("RankTooLarge", "policy one")
        assert (await stub.ForwardBackward(lesson("one", 1))).tokens == 3
    async with called(base, tmp_path) as (_, stub):
        assert (await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one"))).step == 1
