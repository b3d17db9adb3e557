"""Awaiting several things at once gives all results, the first error, or a cancellation."""

import asyncio

import pytest

from mint_contracts.awaiting import gather_or_cancel, wait_uncancelled
from mint_contracts.errors import Overloaded
from tests.waiting import PATIENCE_S


async def refuse() -> str:
    raise Overloaded("engine", "is full")


async def test_results_come_in_the_order_of_the_awaitables() -> None:
    async def wait_for(turn: asyncio.Event, then: asyncio.Event) -> bool:
        await turn.wait()
        then.set()
        return turn is first

    first, second = asyncio.Event(), asyncio.Event()
    first.set()
    assert await gather_or_cancel([wait_for(second, second), wait_for(first, second)]) == [False, True]


async def test_an_error_is_raised_once_the_others_have_ended() -> None:
    ended: list[str] = []

    async def last() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("last")
        return ""

    with pytest.raises(Overloaded):
        await gather_or_cancel([last(), refuse()])
    assert ended == ["last"]


async def test_a_cancellation_is_heard_while_others_are_still_ending_after_a_failure() -> None:
    ending, end = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await end.wait()
        return ""

    task = asyncio.create_task(gather_or_cancel([slow(), refuse()]))
    await asyncio.wait_for(ending.wait(), PATIENCE_S)
    task.cancel()
    await asyncio.sleep(0)  # lets the cancellation reach the group
    assert not task.done()
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_gathering_nothing_returns_nothing() -> None:
    assert await gather_or_cancel([]) == []


async def test_waiting_for_an_end_goes_on_however_often_it_is_cancelled() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_uncancelled(answer))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0)
    assert not done
    answer.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task
