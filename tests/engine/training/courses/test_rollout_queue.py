"""Policies that draw rollouts take turns, however many each of them asks for."""

import asyncio
from pathlib import Path

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from mint_engine.policies.rollout_queue import TURN, QueuedGroup, RolloutQueue
from mint_engine.policies.rollouts import Ask, Rollouts
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.slots import NO_SLOT
from tests.engine.training.training_engine import train, training

POLICIES = ("a", "b", "c")


def order(*asked: tuple[str, int], turn: int = 8) -> str:
    """Return the policies in the order in which their places are admitted."""
    queue = RolloutQueue[int](turn)
    for number, (policy, count) in enumerate(asked):
        queue.join(QueuedGroup(policy, count, number))
    return "".join(queue.admit().policy for _ in asked)


def test_small_requests_are_served_in_order() -> None:
    assert order(("a", 4), ("a", 4), ("b", 4), ("c", 4), ("b", 4)) == "aabbc"


def test_large_requests_go_behind_the_others_after_each_turn() -> None:
    assert order(*[("a", 4)] * 6, ("b", 4), ("c", 2), ("c", 2)) == "aabccaaaa"


def test_a_request_that_stops_waiting_delays_nobody() -> None:
    queue = RolloutQueue[str](8)
    first, second, third = QueuedGroup("a", 4, "1"), QueuedGroup("a", 4, "2"), QueuedGroup("b", 4, "3")
    for group in (first, second, third):
        queue.join(group)
    queue.leave(first)
    assert queue.first == second
    queue.leave(second)
    assert queue.admit() == third
    queue.leave(third)  # it was admitted and is not in queue any more
    assert not queue


@given(st.lists(st.tuples(st.sampled_from(POLICIES), st.integers(1, 6)) | st.none(), max_size=60))
def test_each_waits_for_no_more_than_a_turn_of_every_other_and_keeps_its_own_order(
    history: list[tuple[str, int] | None],
) -> None:
    """`history` is a sequence of arrivals and of admissions (None)."""
    turn, largest = 8, 6
    queue = RolloutQueue[int](turn)
    own: dict[str, list[int]] = {policy: [] for policy in POLICIES}  # places waiting
    ahead = dict.fromkeys(POLICIES, 0)  # completions drawn by others while it has waited

    def admit() -> None:
        group = queue.admit()
        assert group.who == own[group.policy].pop(0)
        ahead[group.policy] = 0
        for other in POLICIES:
            ahead[other] += group.count if own[other] and other != group.policy else 0
            assert ahead[other] <= (len(POLICIES) - 1) * (turn - 1 + largest)

    for number, event in enumerate(history):
        if event is not None:
            queue.join(QueuedGroup(*event, number))
            own[event[0]].append(number)
        elif queue:
            admit()
    while queue:
        admit()
    assert not any(own.values())


async def test_a_policy_of_many_prompts_does_not_keep_another_from_its_rollouts(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train()) as scene:
        sampling = Sampling(2, 0, temperature=1.0, logprobs=0, ignore_eos=True)
        ask = Ask("acme/large", "", NO_SLOT, (40, 41, 42), sampling, tuple(range(16)))
        large = [asyncio.create_task(scene.context.rollouts.group(ask)) for _ in range(4 * TURN // 16)]
        await asyncio.sleep(0)  # all of them wait or run before the other arrives
        await scene.context.rollouts.group(msgspec.structs.replace(ask, policy="acme/small"))
        assert not all(task.done() for task in large)
        await asyncio.gather(*large)


async def test_who_gives_up_just_before_its_turn_takes_nothing_of_what_its_policy_may_draw(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train()) as scene:
        rollouts = Rollouts(scene.stepper, places=17)
        await rollouts._admit("c", 16)
        asked = ("a", TURN), ("a", 16), ("b", 16)
        gone, own, other = (asyncio.create_task(rollouts._admit(*each)) for each in asked)
        await asyncio.sleep(0)  # now all three wait
        gone.cancel()
        rollouts._leave(16)  # before the cancelled task has run
        await own
        assert not other.done()
        rollouts._leave(16)
        await other
