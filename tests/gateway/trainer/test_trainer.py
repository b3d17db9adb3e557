"""Trainer calls through a gateway to real engines: the right one gets them, and each counts once."""

import asyncio

import grpc
import pytest

from mint_contracts import errors
from mint_contracts import training_pb2 as pb
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_contracts.wire import from_rpc_error
from mint_engine.policies.calls import register
from mint_gateway.client import Client, question
from mint_gateway.http.door import listen
from mint_gateway.policy import Policy, example
from mint_gateway.server import serve
from mint_gateway.trainer import policy_locations, servicer
from tests.engine.training.calling import BASE, lesson
from tests.engine.training.training_engine import Gate, assignment, hold_updates
from tests.gateway.scene import LIMITS, Scene
from tests.gateway.taught import LESSON, LIMIT_S, NAMES, School, learn
from tests.waiting import until


async def test_policies_spread_over_engines_and_each_learns_where_it_is(school: School) -> None:
    client = school.scene.client
    names = [f"acme/{letter}" for letter in "abcdefgh"]
    policies = [await client.create_policy(name, rank=4, seed=3) for name in names]
    assert {where for name in names for where in school.has(name)} == set(NAMES)
    assert all(len(school.has(name)) == 1 for name in names)
    norms = [[await learn(policy) for _ in range(2)] for policy in policies]
    assert all(each == norms[0] for each in norms), "all are alike, on whichever engine"
    response = await client.policies()
    assert [(each.policy, each.step, each.sequence) for each in response.policies] == [(name, 2, 4) for name in names]
    assert [[each.engine] for each in response.policies] == [school.has(name) for name in names]
    assert {each.base_model for each in response.policies} == {BASE}


async def test_another_gateway_finds_a_policy_and_another_client_goes_on_with_it(school: School) -> None:
    first = await school.scene.client.create_policy("acme/a", rank=4)
    await learn(first)
    serving = serve(school.scene.redis, "127.0.0.1:0", listen("127.0.0.1", 0), LIMITS)
    async with serving as gateway, Client(f"127.0.0.1:{gateway.port}") as other:
        found = await other.policy("acme/a", base_model=BASE)
        assert (found.life, found.sequence, found.step) == (first.life, 2, 1)
        await learn(found)
        assert await other.create_policy("acme/b") is not None
    assert (await school.scene.client.policy("acme/a")).step == 2


async def test_an_existing_policy_is_not_created_again_elsewhere(school: School) -> None:
    client = school.scene.client
    policy = await client.create_policy("acme/a", rank=4)
    assert (await client.create_policy("acme/a", rank=4)).life == policy.life
    with pytest.raises(errors.InvalidRequest, match="exists with rank 4, not 8"):
        await client.create_policy("acme/a", rank=8)
    await learn(policy)
    with pytest.raises(errors.InvalidRequest, match=r"exists, at call 2; continue with it \(ResumePolicy\), or drop"):
        await client.create_policy("acme/a", rank=4)
    assert len(school.has("acme/a")) == 1


async def test_a_new_policy_goes_where_there_is_room(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    client = school.scene.client
    monkeypatch.setattr(register, "MOST_POLICIES", 1)
    for name in ("acme/a", "acme/b"):
        await client.create_policy(name, rank=4)
    assert sorted([*school.has("acme/a"), *school.has("acme/b")]) == list(NAMES)
    with pytest.raises(errors.Overloaded, match="already has 1 Trainer API policies; drop one") as full:
        await client.create_policy("acme/c", rank=4)
    assert full.value.retry_after_s == register.FULL_RETRY_S
    await (await client.policy("acme/a")).drop()
    assert (await client.create_policy("acme/c", rank=4)).name == "acme/c"
    with pytest.raises(errors.PolicyNotFound, match=f"policy 'acme/a': is not on any engine of {BASE}"):
        await client.policy("acme/a")


async def test_a_call_whose_answer_was_lost_counts_once(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    engine = school.engines[where]
    with engine.mute():
        learning = asyncio.create_task(policy.forward_backward(LESSON, loss="cross_entropy"))
        await until(lambda: engine.calls["acme/a"].sequence == 1)
    assert (await learning).tokens == 3
    assert (await policy.optim_step()).step == 1
    assert engine.calls["acme/a"].sequence == 2


async def test_a_policy_that_may_be_on_a_silent_engine_is_not_reported_missing(
    school: School, patient: Client
) -> None:
    client = school.scene.client
    await client.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    with school.engines[where].silent():
        with pytest.raises(errors.EngineUnavailable, match=f"may be on {where}, which is not responding; retry"):
            await client.policy("acme/a")
        with pytest.raises(errors.EngineUnavailable, match="which is not responding"):
            await client.create_policy("acme/a", rank=4)
        assert list((await client.policies()).silent) == [where]
    assert (await patient.policy("acme/a")).engine == where


async def test_a_policy_goes_on_elsewhere_from_what_it_saved_when_its_engine_has_ended(school: School) -> None:
    client = school.scene.client
    policy, alike = [await client.create_policy(name, rank=4, seed=3) for name in ("acme/a", "acme/b")]
    for each in (policy, alike):
        await learn(each)
    saved = await policy.save_state()
    [where] = school.has("acme/a")
    await school.engines[where].leave()
    await school.seen(*{*NAMES} - {where})
    with pytest.raises(errors.PolicyNotFound, match="resume it from what it saved, or create it"):
        await policy.optim_step()
    again = await client.create_policy("acme/a", rank=4)
    assert again.life > policy.life
    await again.load_state(saved)
    assert again.step == 1
    if school.has("acme/b") == [where]:
        alike = await client.create_policy("acme/b", rank=4, seed=3)
        await learn(alike)
    assert await learn(again) == await learn(alike)


async def test_a_name_is_let_go_of_also_when_its_policy_has_ended_with_its_engine(school: School) -> None:
    client = school.scene.client
    for name in NAMES:  # each is some policy's home
        there = school.engines[name].trains.server.register
        assert there.context is not None
        async with grpc.aio.insecure_channel(school.engines[name].record().address) as channel:
            stub = TrainerStub(channel)
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=f"acme/{name}", rank=4))
            await stub.Publish(pb.PublishRequest(policy=f"acme/{name}", sequence=1))
        there._calls.clear()  # as in an engine of this name that has restarted
        await client.drop_policy(f"acme/{name}")
        await there.context.announcement_cache.look()
        assert f"acme/{name}" not in there.context.announcement_cache.known


async def test_the_later_of_two_lives_of_a_policy_is_meant(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_locations, "ASK_S", LIMIT_S)  # so that both answer, however late
    client = school.scene.client
    lives = {}
    for name in NAMES:  # as two gateways may have done while one engine was away
        engine = school.engines[name]
        async with grpc.aio.insecure_channel(engine.record().address) as channel:
            made = await TrainerStub(channel).CreatePolicy(pb.CreatePolicyRequest(policy="acme/a", rank=4))
        lives[name] = made.life
    found = await client.policy("acme/a")
    assert found.life == max(lives.values())
    await learn(found)
    assert [engine.calls["acme/a"].step for engine in school.engines.values()] == [0, 1]
    await found.drop()
    earlier = await client.policy("acme/a")
    assert earlier.life == min(lives.values())


async def test_a_revision_published_by_the_gateway_is_served_by_its_engine(school: School) -> None:
    client = school.scene.client
    policy = await client.create_policy("acme/a", rank=4)
    await learn(policy)
    published = await policy.publish()
    [where] = school.has("acme/a")
    async with school.engines[where].trains.residency.hold("acme/a") as held:
        assert held.revision == published.revision
    await policy.drop()
    assert school.has("acme/a") == []


async def test_answers_are_learnt_by_their_advantage(school: School) -> None:
    prompt, client = [5, 6, 7], school.scene.client
    request = question(prompt, base_model=BASE, max_tokens=6, temperature=1.0, seed=3, logprobs=0)
    answer = await client.answer(request)
    policy = await client.create_policy("acme/a", rank=4)
    drawn = example(prompt, answer.token_ids, advantage=2.0, sampler_logprobs=answer.logprobs)
    response = await policy.forward_backward([drawn], loss="importance_sampling")
    assert response.loss_sum == pytest.approx(-2.0 * len(answer.token_ids), rel=1e-4), (
        "it is the base still: all ratios are 1"
    )
    with pytest.raises(errors.InvalidRequest, match="needs at least one token of the prompt, and one of"):
        example([], answer.token_ids)


async def test_a_waves_policy_is_its_engines_to_refuse(school: School) -> None:
    school.engines["e-0"].trains.want(assignment("acme/waves"))
    with pytest.raises(errors.InvalidRequest, match="is trained by a wave, which alone may change it"):
        await school.scene.client.create_policy("acme/waves")
    assert school.has("acme/waves") == []


async def test_a_call_without_an_outcome_is_settled_before_the_next(school: School) -> None:
    policy = await school.scene.client.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    with Gate() as gate:
        hold_updates(school.engines[where].trains, gate)
        learning = asyncio.create_task(policy.forward_backward(LESSON, loss="cross_entropy"))
        await gate.reached()
        learning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await learning
        with pytest.raises(errors.OutOfOrder, match=r"no answer yet to its call 1 \(ForwardBackward\); settle"):
            await policy.optim_step()
        gate.open()
        response = await policy.settle()
    assert response.tokens == 3
    assert (await policy.settle(), policy.sequence) == (None, 1)
    assert (await policy.optim_step()).step == 1


async def test_a_refused_call_leaves_its_number_to_the_next(school: School) -> None:
    policy = await school.scene.client.create_policy("acme/a", rank=4)
    with pytest.raises(errors.InvalidRequest, match="loss"):
        await policy.forward_backward(LESSON, loss="regret")
    assert (await policy.settle(), policy.sequence) == (None, 0)
    await learn(policy)
    assert policy.sequence == 2


async def test_more_than_a_gateway_holds_is_refused_with_when_to_come_back(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MOST_BYTES", servicer._taken(lesson("acme/a", 1)) + 200)
    await school.scene.open()
    await school.scene.seen()
    policy = await school.scene.client.create_policy("acme/a", rank=4)
    [where] = school.has("acme/a")
    with Gate() as gate:
        hold_updates(school.engines[where].trains, gate)
        learning = asyncio.create_task(policy.forward_backward(LESSON, loss="cross_entropy"))
        await gate.reached()
        async with grpc.aio.insecure_channel(school.scene.target) as channel:
            many = lesson("acme/a", 2, examples=[example([5], [6] * 100)])
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await TrainerStub(channel).ForwardBackward(many)
    full = from_rpc_error(refused.value)
    assert isinstance(full, errors.Overloaded)
    assert full.retry_after_s == 1.0
    assert (await learning).tokens == 3
    with pytest.raises(
        errors.InvalidRequest, match="and a call takes at most 8,191 KiB; split them over several calls"
    ):
        await policy.forward_backward([example([5], [6] * 2_000_000)], loss="cross_entropy")


async def test_a_base_that_trains_nothing_says_so(scene: Scene) -> None:
    await scene.with_engine()
    for call in (scene.client.create_policy("acme/a"), scene.client.policy("acme/a")):
        with pytest.raises(errors.InvalidRequest, match="does not train; set spec"):
            await call
    with pytest.raises(errors.BaseModelNotFound):
        await scene.client.create_policy("acme/a", base_model="demo/other")
    with pytest.raises(errors.InvalidRequest, match="is not a valid name"):
        await scene.client.create_policy("acme//a")


async def test_engines_that_are_not_there_yet_are_waited_for(scene: Scene) -> None:
    await scene.base(trains=True)
    await scene.open()
    await until(lambda: scene.gateway.mirror.views.get("demo/smollm2") is not None)
    with pytest.raises(errors.EngineUnavailable, match="no engine of it can answer now: none has reported yet"):
        await scene.client.create_policy("acme/a")
    async with Client(scene.target, patience_s=LIMIT_S) as patient:
        making = asyncio.create_task(patient.create_policy("acme/a"))
        engine = await scene.engine("e-0", trains=True)
        policy: Policy = await making
    assert engine.trainer is not None
    assert engine.trainer.policies.keys() == {policy.name}
