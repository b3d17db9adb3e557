"""Looks for whether another engine has gone on with a policy, in a store that gives no answer."""

import asyncio

import pytest

from mint_contracts.errors import SourceUnavailable
from mint_engine.policies import lease_check
from mint_engine.policies.lease_check import LeaseCheck


async def test_a_policy_has_one_look_under_way_however_long_its_store_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each holds a thread, of those that other stores are asked on, too."""
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
