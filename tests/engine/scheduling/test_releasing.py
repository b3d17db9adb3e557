"""Requests that end early, by their client or a defect, release pages and slots and disturb nobody else."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from mint_contracts.errors import Internal
from mint_contracts.sampling_pb2 import GenerateRequest, SamplingParams, TokenIds
from mint_contracts.wire import from_rpc_error
from mint_engine.scheduling.request import Completion
from tests.engine.running import Answer, ask, running
from tests.engine.steps import LONG, Gate, refusal
from tests.waiting import until


async def test_a_client_that_goes_away_frees_its_pages(base: Path, adapter: Path) -> None:
    """Not when the completion would have ended, but before the next step."""
    async with running(base, {"a": adapter}) as engine:
        gate = Gate(engine, after=3)
        request = GenerateRequest(
            tokens=TokenIds(ids=[5, 6]), adapter="a", sampling=SamplingParams(max_tokens=LONG, ignore_eos=True)
        )
        call = engine.sampler.Generate(request)
        await gate.closed()
        [completion] = engine.server.generation.scheduler.running
        assert engine.free_pages < engine.all_pages
        assert engine.holder.users == {"a": 1}
        call.cancel()
        await until(lambda: len(engine.stepper._cancelled) == 1)
        gate.open()
        await until(lambda: engine.holder.users == {"a": 0})
        assert engine.free_pages == engine.all_pages
        assert engine.server.load_now.running == 0
        assert completion.generated == 4


async def test_a_slot_is_held_until_no_step_reads_it(base: Path, adapter: Path) -> None:
    """While a step is in progress its request's slot stays pinned, even if the client has gone."""
    async with running(base, {"a": adapter}) as engine:
        gate = Gate(engine)
        call = engine.sampler.Generate(
            GenerateRequest(text="dog", adapter="a", sampling=SamplingParams(max_tokens=9))
        )
        await gate.closed()
        call.cancel()
        await until(lambda: len(engine.stepper._cancelled) == 1)
        for _ in range(20):  # turns in which the request's own task could have released it
            await asyncio.sleep(0)
        assert engine.holder.users == {"a": 1}
        gate.open()
        await until(lambda: engine.holder.users == {"a": 0})


async def test_a_defect_in_a_step_fails_that_step_alone(base: Path) -> None:
    async with running(base) as engine:
        forward = engine.server.generation._forward
        run, calls = forward.run, []

        def break_once(*args: Any) -> torch.Tensor:
            calls.append(args)
            if len(calls) == 3:
                raise RuntimeError("a kernel broke")
            return run(*args)

        forward.run = break_once  # type: ignore[assignment, method-assign]
        refused = await refusal(
            engine, GenerateRequest(text="dog", sampling=SamplingParams(max_tokens=9, ignore_eos=True))
        )
        assert isinstance(refused, Internal)
        assert "a kernel broke" in str(refused)
        assert len((await ask(engine, [5], max_tokens=9, ignore_eos=True)).tokens) == 9
        assert engine.free_pages == engine.all_pages
        assert engine.server.ready


async def test_a_defect_late_in_a_step_fails_its_own_request_alone(base: Path) -> None:
    async with running(base) as engine:
        gate, generation = Gate(engine), engine.server.generation
        routes, calls = generation._routes, []

        def break_second(completion: Completion) -> Any:
            calls.append(completion)
            if len(calls) == 2:
                raise RuntimeError("a tokenizer broke")
            return routes(completion)

        generation._routes = break_second  # type: ignore[method-assign]
        going_on = asyncio.create_task(ask(engine, [5], max_tokens=9, ignore_eos=True))
        await gate.closed()
        both = [asyncio.create_task(ask(engine, [6, 7], max_tokens=1)) for _ in range(2)]
        await until(lambda: engine.server.load_now.waiting == 3)  # so that both end in one step
        gate.open()
        ended, broken = await asyncio.gather(*both, return_exceptions=True)
        if isinstance(ended, BaseException):
            ended, broken = broken, ended
        assert isinstance(ended, Answer)
        assert len(ended.tokens) == 1
        assert isinstance(broken, grpc.aio.AioRpcError)
        assert isinstance(refused := from_rpc_error(broken), Internal)
        assert "a tokenizer broke" in str(refused)
        assert len((await going_on).tokens) == 9
        assert engine.free_pages == engine.all_pages


async def test_a_request_that_ended_before_a_defect_in_the_same_step_is_complete(base: Path, adapter: Path) -> None:
    """Its prompt was all it wanted; then choosing a token for its neighbour failed, say for lack of memory."""
    async with running(base, {"a": adapter}) as engine:
        gate, generation = Gate(engine), engine.server.generation
        choose, calls = generation._chosen, []

        def break_second(*given: Any) -> Any:
            calls.append(given)
            if len(calls) == 2:
                raise RuntimeError("the device is full")
            return choose(*given)

        generation._chosen = break_second  # type: ignore[assignment, method-assign]
        going_on = asyncio.create_task(ask(engine, [5], max_tokens=9, ignore_eos=True))
        await gate.closed()
        scored = asyncio.create_task(ask(engine, [6, 7], "a", max_tokens=0, prompt_logprobs=True))
        await until(lambda: engine.server.load_now.waiting == 2)  # so that its one step is the other's second
        gate.open()
        with pytest.raises(grpc.aio.AioRpcError, match="the device is full"):
            await going_on
        await until(lambda: engine.holder.users == {"a": 0})
        assert len((await scored).started.prompt_logprobs) == 1
        assert engine.free_pages == engine.all_pages


async def test_a_defect_before_a_request_has_begun_is_told(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(base, {"a": adapter}) as engine:

        def break_always(*_: Any) -> Completion:
            raise RuntimeError("a tokenizer broke")

        with monkeypatch.context() as patched:
            patched.setattr(engine.server.generation, "begin", break_always)
            refused = await asyncio.wait_for(refusal(engine, GenerateRequest(text="dog", adapter="a")), 60)
        assert isinstance(refused, Internal)
        assert engine.holder.users == {"a": 0}
        assert (await ask(engine, [5], "a", max_tokens=1)).tokens


async def test_an_adapter_that_overflows_spoils_nobody_else(base: Path, adapter: Path) -> None:
    """NaN from one adapter ends its own request; its neighbour, and who gets its pages next, stay right."""
    async with running(base, {"good": adapter, "bad": adapter}, kv_cache_bytes=220 << 10) as engine:
        expected = await ask(engine, [5, 6, 7], "good", max_tokens=12, ignore_eos=True)
        engine.server.slots.memory[engine.holder.places["bad"]] = torch.inf
        bad = GenerateRequest(tokens=TokenIds(ids=[5] * 40), adapter="bad", sampling=SamplingParams(max_tokens=12))
        for _ in range(6):
            refused, answer = await asyncio.gather(
                refusal(engine, bad), ask(engine, [5, 6, 7], "good", max_tokens=12, ignore_eos=True)
            )
            assert isinstance(refused, Internal)
            assert "adapter bad" in str(refused)
            assert answer.tokens == expected.tokens
