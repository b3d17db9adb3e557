"""The process that checks texts by users' patterns and schemas: its memory, and who waits for it."""

import asyncio
from collections.abc import Callable

import pytest

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import ExactMatch, JsonSchema, Regex, Reward
from mint_engine.rewards import checking, patterns
from mint_engine.rewards import scorer as scoring
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import QUEUED, Scorer
from tests.waiting import PATIENCE_S, until


def test_a_rule_that_takes_too_much_memory_is_tried_again_only_if_other_rules_held_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others' checks wait meanwhile."""
    tried = list[str]()

    def endless(rule: str) -> Callable[[str], bool]:
        tried.append(rule)
        raise MemoryError

    monkeypatch.setitem(checking.KINDS, "endless", endless)  # a real one would fill this process's memory
    checking._forget()
    for others, tries in ((0, 1), (1, 2), (0, 1)):
        for _ in range(others):
            assert checking._answer(PATIENCE_S, "pattern", "x", "x") is True
        assert checking._answer(PATIENCE_S, "endless", "a", "") == "takes more than 256 MiB on ''"
        assert len(tried) == tries
        tried.clear()


async def test_a_pattern_that_takes_the_engines_memory_is_an_error() -> None:
    """The process that reads it shares the engine's container, which would be killed with all that it serves."""
    with pytest.raises(InvalidRequest, match=r"takes more than 256 MiB on ''"):
        await Scorer(Reward(regex=Regex(pattern="(?:(?:a){1000}){1000}"))).check()


async def test_a_pattern_is_never_blamed_for_the_memory_that_others_take() -> None:
    for repeats in range(395, 400):  # each takes 110 MB, as long as it is cached
        await Scorer(Reward(regex=Regex(pattern=f"(?:(?:a){{1000}}){{{repeats}}}"))).check()


async def test_other_rewards_do_not_wait_for_slow_patterns() -> None:
    slow = Scorer(Reward(regex=Regex(pattern="x")))
    with patterns._checker._turn:  # as a check takes it, for up to two seconds
        waiting = [asyncio.create_task(slow.score("acme/slow", 0, [Completion("", "x")])) for _ in range(4)]
        async with asyncio.timeout(PATIENCE_S):
            for reward in (Reward(exact_match=ExactMatch()), Reward(json_schema=JsonSchema(schema="true"))):
                assert await Scorer(reward).score("acme/one", 0, [Completion("", "7", "7")]) == [1.0]
    assert await asyncio.gather(*waiting) == [[1.0]] * 4


async def test_a_large_step_does_not_hold_up_the_event_loop_by_its_rewards() -> None:
    """Each completion that is queued, or cancelled after an error, takes the loop's time at once."""
    scorer, threads = Scorer(Reward(regex=Regex(pattern="x")), "a/large"), scoring._checking["regex"]
    with patterns._checker._turn:
        rewards = asyncio.create_task(scorer.score("acme/large", 0, [Completion("", "x")] * 1000))
        await until(lambda: "a/large" in threads._waiting)
        assert len(threads._waiting["a/large"]) < QUEUED
    assert await rewards == [1.0] * 1000


async def test_patterns_of_one_wave_wait_for_one_slow_check_of_another() -> None:
    slow, quick = (
        Scorer(Reward(regex=Regex(pattern="^(x|xx)+[ab]")), "a/slow"),
        Scorer(Reward(regex=Regex("x")), "b/w"),
    )
    long = [Completion("", "x" * 27)] * 40
    waiting = [asyncio.create_task(slow.score(f"acme/{number}", 0, long)) for number in range(4)]
    await asyncio.sleep(0)  # all have begun
    await quick.score("acme/quick", 0, [Completion("", "x")] * 80)
    assert not any(each.done() for each in waiting)
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
