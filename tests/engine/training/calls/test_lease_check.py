"""Checking whether another engine has taken over a policy, with a store that fails or does not answer."""

import asyncio

import pytest
from structlog.testing import capture_logs

from mint_contracts.errors import SourceUnavailable
from mint_engine.policies.calls import lease_check
from mint_engine.policies.calls.lease_check import LeaseCheck
from tests.waiting import until


async def test_a_policy_has_one_look_under_way_however_long_its_store_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each look holds a thread of a pool that calls to other stores need, too."""
    for name, value in (("LOOK_S", 0.0), ("SURE_S", 0.0), ("ANSWER_S", 0.01)):
        monkeypatch.setattr(lease_check, name, value)
    begun, answers, of = 0, asyncio.Event(), LeaseCheck()

    async def look() -> None:
        nonlocal begun
        begun += 1
        await answers.wait()

    for _ in range(3):
        with pytest.raises(SourceUnavailable, match="cannot be read to check"):
            await of.check("one", look)
    assert begun == 1
    monkeypatch.setattr(lease_check, "ANSWER_S", 60.0)
    answers.set()
    await of.check("one", look)
    assert begun == 2, "what is true now was not seen by the one that began before"


async def test_a_waiter_for_a_look_that_failed_makes_its_own() -> None:
    """The earlier look's error says nothing about the store's present state."""
    answers, of, found = asyncio.Event(), LeaseCheck(), list[str]()

    async def away() -> None:
        await answers.wait()
        raise SourceUnavailable("store", "does not answer")

    async def there() -> None:
        found.append("there")

    earlier = asyncio.create_task(of.look("one", away))
    later = asyncio.create_task(of.look("one", there))
    await asyncio.sleep(0)
    answers.set()
    await later
    assert found == ["there"]
    with pytest.raises(SourceUnavailable):
        await earlier


async def test_a_look_that_fails_once_nobody_waits_for_it_any_more_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease_check, "ANSWER_S", 0.01)
    answers, of = asyncio.Event(), LeaseCheck()

    async def away() -> None:
        await answers.wait()
        raise SourceUnavailable("store", "does not answer")

    with capture_logs() as logs:
        with pytest.raises(TimeoutError):
            await of.look("one", away)
        answers.set()
        await until(lambda: logs)
    assert [(each["event"], each["policy"]) for each in logs] == [("failed_after_its_caller_left", "one")]
