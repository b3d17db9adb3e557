"""A program whose policy's engine ends continues through the gateway, without loss if the engine was told to end."""

import asyncio

import pytest

from mint_contracts import errors
from mint_engine.policies.calls import call_checkpoints
from mint_gateway.client import Client
from tests.engine.training.training_engine import Gate, hold_updates
from tests.gateway.taught import LESSON, NAMES, School, learn
from tests.waiting import until


async def test_a_policy_goes_on_elsewhere_as_if_its_engine_had_not_ended(school: School, patient: Client) -> None:
    policy, alike = [await patient.create_policy(name, rank=4, seed=3) for name in ("acme/a", "acme/b")]
    assert await learn(policy) == await learn(alike)
    [first] = school.has("acme/a")
    await policy.forward_backward(LESSON, loss="cross_entropy")
    await alike.forward_backward(LESSON, loss="cross_entropy")
    life = policy.life
    await school.engines[first].end()
    steps = [await each.optim_step(learning_rate=1e-2) for each in (policy, alike)]
    assert steps[0] == steps[1]
    assert await learn(policy) == await learn(alike)
    assert (policy.life, policy.engine) == (life, next(name for name in NAMES if name != first))
    assert [each.step for each in (await patient.policies()).policies] == [3, 3]


async def test_a_policy_that_rests_goes_on_as_if_it_had_not(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await learn(policy)
    [where] = school.has("acme/a")
    await school.engines[where].trains.server.register.rest(0.0)
    assert not school.has("acme/a")
    await learn(policy)
    assert (policy.step, policy.sequence) == (2, 4)
    await school.engines[policy.engine].trains.server.register.rest(0.0)
    await patient.drop_policy("acme/a")
    with pytest.raises(errors.PolicyNotFound):
        await policy.optim_step()


async def test_a_call_whose_answer_went_with_the_engine_is_told_to_have_been(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await policy.forward_backward(LESSON, loss="cross_entropy")
    [where] = school.has("acme/a")
    engine = school.engines[where]
    with engine.silent():
        stepping = asyncio.create_task(policy.optim_step())
        await until(lambda: engine.calls["acme/a"].sequence == 2)
        await engine.end()
    with pytest.raises(errors.OutOfOrder, match=r"continues after its call 2 \(OptimStep\), whose answer is lost"):
        await stepping
    assert (policy.step, policy.sequence) == (1, 2)
    await learn(policy)
    assert policy.step == 2


async def test_unsaved_steps_of_a_killed_engine_are_reported_lost(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await learn(policy)
    await policy.save_state()
    await learn(policy)
    [where] = school.has("acme/a")
    await school.engines[where].leave()
    await school.seen(*{*NAMES} - {where})
    with pytest.raises(errors.PolicyNotFound, match="resume it from what it saved, or create it"):
        await policy.optim_step()
    again = await patient.resume_policy("acme/a")
    assert (again.life, again.step, again.sequence) == (policy.life, 1, 3)
    await learn(again)
    with pytest.raises(errors.PolicyNotFound, match="has no saved state to resume from; create it"):
        await patient.resume_policy("acme/none")


async def test_a_checkpoint_that_is_not_there_is_no_engine_that_has_ended(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    saved = await policy.save_state()
    with pytest.raises(errors.SourceNotFound, match="does not exist, or was swept: the newest 16 are kept"):
        await policy.load_state(saved.replace("0001", "0009"))
    await learn(policy)
    assert policy.step == 1


async def test_a_dropped_policy_stays_dropped(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await learn(policy)
    [where] = school.has("acme/a")
    await school.engines[where].end()
    await learn(policy)
    await patient.drop_policy("acme/a")
    with pytest.raises(errors.PolicyNotFound):
        await policy.optim_step()
    assert (await patient.policies()).policies == []


async def test_no_program_continues_with_older_weights_unnoticed(school: School, patient: Client) -> None:
    """An engine has announced that it left a policy, and then trains it further before it is killed."""
    policy = await patient.create_policy("acme/a", rank=4)
    await learn(policy)
    [where] = school.has("acme/a")
    engine = school.engines[where]
    await call_checkpoints.leave(engine.trains.server.register.here, "acme/a", engine.calls["acme/a"])
    await learn(policy)
    await engine.leave()
    await school.seen(*{*NAMES} - {where})
    with pytest.raises(
        errors.PolicyNotFound, match="after call 2, and is at call 2, not 4: what it learnt since is lost"
    ):
        await policy.optim_step()
    assert (policy.sequence, policy.step) == (4, 2)
    again = await patient.resume_policy("acme/a")
    assert (again.life, again.sequence, again.step) == (policy.life, 2, 1)
    await learn(again)


@pytest.mark.parametrize("rests", [False, True], ids=["in_memory", "at_rest"])
async def test_a_program_that_ended_before_its_step_begins_that_step_again(
    school: School, patient: Client, rests: bool
) -> None:
    """It computes its gradient again: added to the one that it left, it would count twice."""
    policy, alike = [await patient.create_policy(name, rank=4, seed=3) for name in ("acme/a", "acme/b")]
    assert await learn(policy) == await learn(alike)
    await policy.forward_backward(LESSON, loss="cross_entropy")
    if rests:
        await school.engines[policy.engine].trains.server.register.rest(0.0)
    again = await patient.resume_policy("acme/a")
    assert (again.life, again.step, again.sequence) == (policy.life, 1, 3)
    assert await learn(again) == await learn(alike)


async def test_a_program_that_begins_again_waits_for_the_call_that_it_left(school: School, patient: Client) -> None:
    policy, alike = [await patient.create_policy(name, rank=4, seed=3) for name in ("acme/a", "acme/b")]
    engine = school.engines[policy.engine]
    with Gate() as gate:
        hold_updates(engine.trains, gate)
        killed = asyncio.create_task(policy.forward_backward(LESSON, loss="cross_entropy"))
        await gate.reached()
        killed.cancel()
        resuming = asyncio.create_task(patient.resume_policy("acme/a"))
        await until(lambda: engine.calls["acme/a"]._turn._waiters)
        gate.open()
        again = await resuming
    assert (again.step, again.sequence) == (0, 1)
    assert await learn(again) == await learn(alike)
