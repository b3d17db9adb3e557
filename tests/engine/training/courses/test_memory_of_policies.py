"""`hostMemory` covers policies: one that finds none left says so, holds nothing while waiting, and gets its turn."""

from pathlib import Path
from typing import Any

import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import Internal
from mint_contracts.records import Failure
from mint_engine.policies import patience
from mint_engine.residency.policy_memory import Needs
from mint_engine.training import state
from mint_engine.training.policy import Policy, PolicySettings
from tests.engine.balance import Imbalances
from tests.engine.running import save_adapter
from tests.engine.training.calling import called, lesson, refused
from tests.engine.training.training_engine import Gate, assignment, hold_updates, train, training
from tests.waiting import until

RANK = 4


async def needs_of_one(base: Path, folder: Path) -> Needs:
    """Return the memory that one policy needs on this base."""
    async with training(base, folder / "before") as scene:
        return scene.context.step_thread.maker.needs("any", PolicySettings(RANK))


def room_for(count: int, needs: Needs) -> int:
    return count * needs.own + needs.copies


async def test_policies_wait_for_memory_with_no_slot_and_train_once_others_have_ended(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each saves and publishes after every step, and memory suffices to copy one at a time."""
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.1)
    told = train(steps=3, checkpoint_every_steps=1, publish_every_steps=1)
    names, needs = [f"acme/{n}" for n in range(4)], await needs_of_one(base, tmp_path)
    async with training(base, tmp_path, told, host_bytes=room_for(2, needs)) as scene:
        ledger, slots, room = scene.residency.books.host.ledger, scene.residency.slots, scene.residency.lending.room
        take, in_use = room.take, list[int]()

        def noted(holder: str, wanted: Needs) -> None:
            in_use.append(slots.count - len(slots.free))
            take(holder, wanted)

        def failures() -> list[Failure]:
            return [each.failure for each in scene.roster.progress().values() if each.failure]

        monkeypatch.setattr(room, "take", noted)
        with Gate() as updating:  # otherwise the first two may end before the others report that they wait
            hold_updates(scene, updating)
            scene.want(*(assignment(name) for name in names))
            await until(lambda: len(failures()) == 2)
            for failure in failures():
                assert (failure.reason, failure.terminal) == ("Overloaded", False)
                assert (
                    f"needs {in_units(needs.own + needs.copies)} of host memory; 2 other policies" in failure.message
                )
            assert max(in_use) <= 2, "who waits for memory has no slot"
        ended = await scene.ended(*names)
        assert {(each.step, each.failure) for each in ended.values()} == {(3, None)}
        await until(lambda: ledger.aside == 0)


async def test_what_a_policy_learns_does_not_depend_on_how_long_it_waited_for_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.1)
    needs, rewards = await needs_of_one(base, tmp_path), []
    for policies in (1, 2):
        async with training(base, tmp_path / f"{policies}", host_bytes=room_for(policies, needs)) as scene:
            scene.want(assignment("acme/one"), assignment("acme/two"))
            await scene.ended("acme/one", "acme/two")
            rewards.append({name: list(told) for name, told in scene.roster.rewards().items()})
    assert rewards[0] == rewards[1]


async def test_a_policy_that_memory_can_never_hold_fails(base: Path, tmp_path: Path) -> None:
    needs = await needs_of_one(base, tmp_path)
    async with training(base, tmp_path, host_bytes=room_for(1, needs) - 1) as scene:
        scene.want(assignment("acme/one"))
        failure = await scene.failed("acme/one")
        assert failure.reason == "CapacityExceeded"
        assert "raise hostMemory" in failure.message
        assert len(scene.residency.slots.free) == scene.residency.slots.count


async def test_calls_that_find_no_memory_are_told_to_come_back_and_do(base: Path, tmp_path: Path) -> None:
    """Whatever the calls do, all the memory they have taken is given back."""
    needs = await needs_of_one(base, tmp_path)
    async with called(base, tmp_path, host_bytes=room_for(2, needs)) as (scene, stub):
        room = scene.residency.lending.room
        lives = [(await stub.CreatePolicy(pb.CreatePolicyRequest(policy=n, rank=RANK))).life for n in ("a", "b")]
        assert (room.policies, room.lasting) == (2 * needs.own, room_for(2, needs))
        error = await refused(stub.CreatePolicy(pb.CreatePolicyRequest(policy="c", rank=RANK)))
        assert (error.reason, error.terminal) == ("Overloaded", False)
        assert error.retry_after_s
        await stub.ForwardBackward(lesson("a", 1))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="a", sequence=2))
        await stub.LoadState(pb.LoadStateRequest(policy="a", sequence=3, uri=saved.uri))
        await stub.Publish(pb.PublishRequest(policy="a", sequence=4))
        scene.residency.check()
        await stub.DropPolicy(pb.DropPolicyRequest(policy="b", life=lives[1]))
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="c", rank=RANK))
        assert room.lasting == scene.residency.books.host.ledger.aside == room_for(2, needs)
        for name in ("a", "c"):
            await stub.DropPolicy(pb.DropPolicyRequest(policy=name))
        assert scene.residency.books.host.ledger.aside == 0
        never = await refused(stub.CreatePolicy(pb.CreatePolicyRequest(policy="d", rank=16)))
        assert (never.reason, room.policies) == ("CapacityExceeded", 0)


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("others", [0, 2])
async def test_a_state_that_is_larger_than_its_policy_is_read_within_the_memory_there_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, name: str
) -> None:
    """It is twice as large; an earlier policy, also one of the name, has saved it.

    Beside two other policies there is no memory for it, though there is for a third one.
    """
    needs, read, spare = await needs_of_one(base, tmp_path), state.from_bytes, list[int]()
    async with called(base, tmp_path, host_bytes=room_for(4, needs)) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="large", rank=2 * RANK))
        await stub.ForwardBackward(lesson("large", 1))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="large", sequence=2))
        await stub.DropPolicy(pb.DropPolicyRequest(policy="large"))
        for own in (name, "a", "b")[: 1 + others]:
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=own, rank=RANK))

        def noted(data: bytes, *told: Any) -> Policy:
            spare.append(
                scene.residency.books.host.ledger.aside - (1 + others) * needs.own - 2 * state.numbers_in(data)
            )
            return read(data, *told)

        monkeypatch.setattr(state, "from_bytes", noted)
        loading = stub.LoadState(pb.LoadStateRequest(policy=name, sequence=1, uri=saved.uri, saved_by="large"))
        if others:
            error = await refused(loading)
            assert (error.reason, spare) == ("Overloaded", [])
            assert "raise hostMemory" in error.message
        else:
            await loading
            assert spare == [0]
        scene.residency.check()


async def test_cold_adapters_give_way_to_policies(base: Path, tmp_path: Path) -> None:
    needs = await needs_of_one(base, tmp_path)
    async with training(base, tmp_path, host_bytes=room_for(1, needs)) as scene:
        for n in range(3):
            save_adapter(base, tmp_path / "adapters" / f"cold-{n}", rank=RANK)
            async with scene.residency.hold(f"cold-{n}"):
                pass
        assert len(scene.residency.books.host.ledger) == 3
        scene.want(assignment("acme/one"))
        await until(lambda: not len(scene.residency.books.host.ledger))
        await scene.ended("acme/one")
        async with scene.residency.hold("cold-1"):
            scene.residency.check()


async def test_a_policy_that_has_taken_no_memory_is_an_imbalance(
    base: Path, tmp_path: Path, imbalances: Imbalances
) -> None:
    async def put_stray() -> None:
        async with training(base, tmp_path) as scene:
            policy = await scene.context.step_thread.make(lambda maker: maker.fresh("stray", PolicySettings(RANK)))
            await scene.context.step_thread.call(lambda trainer: trainer.add(policy))

    imbalances.planted = True
    with pytest.raises(Internal, match=r"policies have \d+ bytes and have taken 0"):
        await put_stray()
