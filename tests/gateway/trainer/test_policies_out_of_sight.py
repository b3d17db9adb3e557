"""A policy that a gateway has lost sight of still exists: its calls take effect once, and its program continues."""

import asyncio
from typing import Any

import grpc
import pytest

from mint_contracts import errors
from mint_contracts.wire import to_status
from mint_gateway.client import Client
from tests.gateway.taught import LESSON, NAMES, School, learn
from tests.waiting import until


class Blinking:
    """A gateway that loses sight of an engine, and with it `blinks` answers to OptimStep."""

    def __init__(self, stub: Any) -> None:
        self._stub, self.blinks = stub, 0

    def __getattr__(self, call: str) -> Any:
        return getattr(self._stub, call)

    async def OptimStep(self, request: Any, **options: Any) -> Any:  # noqa: N802
        response = await self._stub.OptimStep(request, **options)
        if self.blinks == 0:
            return response
        self.blinks -= 1
        status = to_status(errors.PolicyNotFound("policy", "is on no engine"))
        trailing = grpc.aio.Metadata(*(status.trailing_metadata or ()))
        raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, details=status.details)


async def test_a_call_is_sent_once_more_where_the_policy_turns_out_to_have_been_there_all_the_time(
    patient: Client,
) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    gateway = policy._stub = Blinking(policy._stub)  # type: ignore[assignment]
    await policy.forward_backward(LESSON, loss="cross_entropy")
    gateway.blinks = 1
    assert (await policy.optim_step()).step == 1
    await learn(policy)
    assert (policy.sequence, policy.step) == (4, 2)


async def test_a_call_without_an_answer_after_the_retry_can_be_settled(patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    gateway = policy._stub = Blinking(policy._stub)  # type: ignore[assignment]
    await policy.forward_backward(LESSON, loss="cross_entropy")
    gateway.blinks = 2
    with pytest.raises(errors.PolicyNotFound):
        await policy.optim_step()
    with pytest.raises(errors.OutOfOrder, match="settle it first"):
        await learn(policy)
    assert (await policy.settle()).step == 1
    await learn(policy)
    assert (policy.sequence, policy.step) == (4, 2)


async def test_a_program_whose_engine_was_cut_off_goes_on_once_that_is_back(school: School, patient: Client) -> None:
    policy = await patient.create_policy("acme/a", rank=4)
    await policy.forward_backward(LESSON, loss="cross_entropy")
    [where] = school.has("acme/a")
    engine = school.engines[where]
    with engine.mute():
        stepping = asyncio.create_task(policy.optim_step())
        await until(lambda: engine.calls["acme/a"].sequence == 2)
        await engine.leave()
        await school.seen(*{*NAMES} - {where})
    with pytest.raises(errors.PolicyNotFound):
        await stepping
    with pytest.raises(errors.PolicyNotFound):
        await policy.settle()
    engine.come_back()
    await school.seen(*NAMES)
    assert (await policy.settle()).step == 1
    await learn(policy)
    assert (policy.sequence, policy.step) == (4, 2)
