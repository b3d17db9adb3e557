"""An engine was cut off while another one resumed a policy of calls: its own copy goes, over real sockets."""

from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from tests.engine.running import save_base
from tests.engine.training.calling import called, lesson, step


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


async def test_it_takes_no_memory_for_ever_and_leaves_what_the_other_engine_has_as_it_is(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
        async with called(base, tmp_path, engine="tiny-1") as (there, other):
            await other.ResumePolicy(pb.ResumePolicyRequest(policy="one"))
            await other.ForwardBackward(lesson("one", 2))
            await other.SaveState(pb.SaveStateRequest(policy="one", sequence=3))
            await scene.server.register.rest(0.0)
            assert not scene.server.register.made()
            assert scene.server.training_bytes == scene.residency.lending.room.lasting == 0
            assert (await other.OptimStep(step("one", 4))).step == 1
            await there.server.register.rest(0.0)
        told = await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one", life=made.life))
        assert (told.sequence, told.step) == (4, 1)
