"""An engine was cut off while another one resumed a policy, and is back: what is dropped is gone from both."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from mint_contracts import errors
from mint_contracts import training_pb2 as pb
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_gateway.client import Client
from tests.engine.running import save_base
from tests.gateway.scene import Scene
from tests.gateway.taught import LIMIT_S, NAMES, School, learn, schooling


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
async def school(scene: Scene, base: Path, tmp_path: Path) -> AsyncIterator[School]:
    async with schooling(scene, base, tmp_path) as school:
        yield school


@pytest.fixture
async def client(school: School) -> AsyncIterator[Client]:
    """A patient one."""
    async with Client(school.scene.target, patience_s=LIMIT_S) as client:
        yield client


async def resume_elsewhere(school: School, policy: str) -> str:
    """Go on with it on the engine that has it not, as by a gateway that does not reach the other one: its name."""
    [where] = school.has(policy)
    [other] = {*NAMES} - {where}
    async with grpc.aio.insecure_channel(school.engines[other].record().address) as channel:
        await TrainerStub(channel).ResumePolicy(pb.ResumePolicyRequest(policy=policy))
    return other


async def test_what_is_dropped_does_not_come_back_from_an_engine_that_was_away(
    school: School, client: Client
) -> None:
    policy = await client.create_policy("acme/a", rank=4)
    await learn(policy)
    await policy.save_state()
    other = await resume_elsewhere(school, "acme/a")
    assert (await client.policy("acme/a")).engine == other
    await client.drop_policy("acme/a")
    assert school.has("acme/a") == []
    with pytest.raises(errors.PolicyNotFound):
        await client.policy("acme/a")


async def test_an_earlier_policy_of_the_name_is_not_meant(school: School, client: Client) -> None:
    policy = await client.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    [other] = {*NAMES} - {where}
    async with Client(school.engines[other].record().address) as elsewhere:
        later = await elsewhere.create_policy("acme/a", rank=4)
    await client.drop_policy("acme/a")
    assert school.has("acme/a") == [where]
    assert (await client.policy("acme/a")).life == policy.life < later.life
