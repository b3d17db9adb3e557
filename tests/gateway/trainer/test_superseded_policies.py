"""An engine was cut off while another resumed its policy, and is back: programs continue with the other engine's."""

import grpc
import pytest

from mint_contracts import errors
from mint_contracts import training_pb2 as pb
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_engine.policies.calls import lease_check
from mint_engine.policies.stored.store import LocalStore
from mint_gateway.client import Client
from tests.engine.training.calling import lesson
from tests.gateway.taught import LESSON, NAMES, School, learn


@pytest.fixture
def each_call_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_check, "LOOK_S", 0.0)


@pytest.fixture
def no_call_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent engines' lease checks, however long a test takes."""
    monkeypatch.setattr(lease_check, "LOOK_S", 3600.0)


def away(*_: object) -> None:
    raise errors.SourceUnavailable("store", "does not answer")


async def resume_elsewhere(school: School, policy: str) -> str:
    """Resume it on the engine that does not have it, as a gateway that cannot reach the other; return its name."""
    [where] = school.has(policy)
    [other] = {*NAMES} - {where}
    await resume_on(school, other, policy)
    return other


async def resume_on(school: School, engine: str, policy: str) -> None:
    async with grpc.aio.insecure_channel(school.engines[engine].record().address) as channel:
        await TrainerStub(channel).ResumePolicy(pb.ResumePolicyRequest(policy=policy))


async def test_a_dropped_policy_does_not_return_from_an_absent_engine(school: School, patient: Client) -> None:
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


@pytest.mark.usefixtures("each_call_looks")
async def test_a_program_goes_on_there_as_if_nothing_had_been_where_it_had_just_saved(
    school: School, patient: Client
) -> None:
    policy, alike = [await patient.create_policy(name, rank=4, seed=3) for name in ("acme/a", "acme/b")]
    for each in (policy, alike):
        await learn(each)
        await each.save_state()
    other = await resume_elsewhere(school, "acme/a")
    assert await learn(policy) == await learn(alike)
    assert (policy.engine, policy.sequence, policy.step) == (other, 5, 2)
    assert school.has("acme/a") == [other]
    assert school.engines[other].calls["acme/a"].sequence == 5


@pytest.mark.usefixtures("each_call_looks")
async def test_a_program_is_told_of_what_it_has_learnt_since_it_saved(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await policy.save_state()
    await learn(policy)
    await resume_elsewhere(school, "acme/a")
    with pytest.raises(errors.PolicyNotFound, match="was resumed elsewhere after call 1, and is at call 1, not 3"):
        await policy.forward_backward(LESSON, loss="cross_entropy")
    again = await patient.resume_policy("acme/a")
    assert (again.life, again.sequence, again.step) == (policy.life, 1, 0)
    await learn(again)


@pytest.mark.usefixtures("no_call_looks")
async def test_two_programs_do_not_go_on_with_one_policy_unawares_though_they_count_alike(
    school: School, patient: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await policy.save_state()
    other = await resume_elsewhere(school, "acme/a")
    async with Client(school.engines[other].record().address) as elsewhere:
        await learn(await elsewhere.policy("acme/a"))
    await learn(policy)  # on the first engine, which has not checked its lease yet
    monkeypatch.setattr(lease_check, "LOOK_S", 0.0)
    with pytest.raises(errors.PolicyNotFound, match="another program has called it; resume it by its name"):
        await policy.forward_backward(LESSON, loss="cross_entropy")
    assert school.engines[other].calls["acme/a"].sequence == 3


@pytest.mark.usefixtures("no_call_looks")
async def test_a_call_for_the_later_lease_goes_there_though_a_gateway_remembers_the_earlier_one(
    school: School, patient: Client
) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await policy.save_state()
    [where] = school.has("acme/a")
    other = await resume_elsewhere(school, "acme/a")
    lease = school.engines[other].calls["acme/a"].lease
    async with grpc.aio.insecure_channel(school.scene.target) as channel:
        await TrainerStub(channel).ForwardBackward(lesson("acme/a", 2, lease=lease))
    assert [school.engines[each].calls["acme/a"].sequence for each in (where, other)] == [1, 2]


async def test_a_program_does_not_go_back_to_the_earlier_one_when_the_later_one_has_ended(
    school: School, patient: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor if the store cannot show which one is earlier, and both are at the same call."""
    await (await patient.create_policy("acme/a", rank=4)).save_state()
    [where] = school.has("acme/a")
    await school.engines[where].trains.server.register.rest(0.0)
    await resume_on(school, where, "acme/a")
    other = await resume_elsewhere(school, "acme/a")
    policy = await patient.policy("acme/a")
    await school.engines[other].leave()
    await school.seen(where)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "names", away)
        with pytest.raises(errors.PolicyNotFound):
            await learn(policy)
    assert school.engines[where].calls["acme/a"].sequence == 1
    with pytest.raises(errors.PolicyNotFound):
        await policy.settle()
    again = await patient.resume_policy("acme/a")
    assert (again.engine, again.life, again.sequence) == (where, policy.life, 1)
    await learn(again)
