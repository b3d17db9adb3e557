"""An engine was cut off while another one resumed a policy, and is back: what is dropped is gone from both."""

import grpc
import pytest

from mint_contracts import errors
from mint_contracts import training_pb2 as pb
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_gateway.client import Client
from tests.gateway.taught import NAMES, School, learn


async def resume_elsewhere(school: School, policy: str) -> str:
    """Go on with it on the engine that has it not, as by a gateway that does not reach the other one: its name."""
    [where] = school.has(policy)
    [other] = {*NAMES} - {where}
    async with grpc.aio.insecure_channel(school.engines[other].record().address) as channel:
        await TrainerStub(channel).ResumePolicy(pb.ResumePolicyRequest(policy=policy))
    return other


async def test_what_is_dropped_does_not_come_back_from_an_engine_that_was_away(
    school: School, patient: Client
) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await learn(policy)
    await policy.save_state()
    other = await resume_elsewhere(school, "acme/a")
    assert (await patient.policy("acme/a")).engine == other
    await patient.drop_policy("acme/a")
    assert school.has("acme/a") == []
    with pytest.raises(errors.PolicyNotFound):
        await patient.policy("acme/a")


async def test_an_earlier_policy_of_the_name_is_not_meant(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    [other] = {*NAMES} - {where}
    async with Client(school.engines[other].record().address) as elsewhere:
        later = await elsewhere.create_policy("acme/a", rank=4)
    await patient.drop_policy("acme/a")
    assert school.has("acme/a") == [where]
    assert (await patient.policy("acme/a")).life == policy.life < later.life
