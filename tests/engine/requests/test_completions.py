"""Several completions of one prompt over gRPC: told apart by index, ended together, each counted."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from mint_contracts.errors import Internal, InvalidRequest, MintError, Overloaded
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_contracts.sampling_pb2 import Finished, GenerateEvent, GenerateRequest, SamplingParams, TokenIds
from mint_contracts.wire import from_rpc_error
from mint_engine import metrics
from mint_engine.requests.answers import Served, answer
from mint_engine.requests.events import PromptScored, Scored
from mint_engine.requests.inbox import CompletionEvent, Inbox, Queued, budget
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.request import CheckedRequest
from mint_engine.scheduling.budget import Share
from mint_engine.scheduling.request import Request, siblings
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import Running, ask, peft_scores, running
from tests.engine.steps import Gate, refusal
from tests.waiting import until

PROMPT = list(range(5, 45))
HOT: dict[str, Any] = {"temperature": 1.0, "max_tokens": 9, "ignore_eos": True}


def request_of(n: int, adapter: str = "", **sampling: Any) -> GenerateRequest:
    params = SamplingParams(n=n, **(HOT | sampling))
    return GenerateRequest(tokens=TokenIds(ids=PROMPT), adapter=adapter, sampling=params)


async def stream(engine: Running, request: GenerateRequest) -> list[GenerateEvent]:
    return [event async for event in engine.sampler.Generate(request, timeout=60)]


async def test_each_completion_is_what_its_seed_gives_alone(base: Path, adapter: Path) -> None:
    """Started comes first, then the chunks of all, a Finished for each, and nothing after the last."""
    async with running(base, {"a": adapter}) as engine:
        events = await stream(engine, request_of(3, "a", seed=7, logprobs=0))
        assert events[0].HasField("started")
        assert events[-1].HasField("finished")
        assert sum(event.HasField("started") for event in events) == 1
        ends = {event.finished.index: event.finished for event in events if event.HasField("finished")}
        assert sorted(ends) == [0, 1, 2]
        for index, end in ends.items():
            chunks = [event.chunk for event in events if event.HasField("chunk") and event.chunk.index == index]
            alone = await ask(engine, PROMPT, "a", seed=7 + index, logprobs=0, **HOT)
            assert tuple(token for chunk in chunks for token in chunk.token_ids) == alone.tokens
            assert "".join(chunk.text for chunk in chunks) == alone.text
            assert all(len(chunk.logprobs) == 1 for chunk in chunks)
            assert (end.reason, end.completion_tokens, end.prompt_tokens) == (Finished.LENGTH, 9, len(PROMPT))


async def test_each_tells_what_was_cached_before_the_first_of_them(base: Path) -> None:
    """What they find of each other's pages does not count; a prompt to be scored is computed again."""
    tokens = metrics.TOKENS.labels("cached")._value
    async with running(base) as engine:
        for n, scored, cached in ((3, False, 0), (3, False, 32), (1, True, 0), (1, False, 32)):
            before = tokens.get()
            events = await stream(engine, request_of(n, prompt_logprobs=scored))
            ends = [event.finished for event in events if event.HasField("finished")]
            assert [end.cached_tokens for end in ends] == [cached] * n
            assert tokens.get() - before == cached


async def test_a_cached_prefix_is_found_only_with_the_same_salt(base: Path) -> None:
    async with running(base) as engine:
        for salt, cached in (("", 0), ("acme", 0), ("rival", 0), ("", 32), ("acme", 32), ("rival", 32)):
            request = request_of(1)
            request.cache_salt = salt
            events = await stream(engine, request)
            assert events[-1].finished.cached_tokens == cached
        request.cache_salt = "a" * 257
        with pytest.raises(grpc.aio.AioRpcError, match="cache_salt: has more than 256 characters"):
            await stream(engine, request)


async def test_an_adapter_is_held_for_the_client_that_the_gateway_names(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}) as engine:
        request = request_of(1, "a")
        request.client = "acme"
        await stream(engine, request)
        assert engine.holder.clients == {"acme"}


async def test_their_prompt_is_hashed_once(quiet: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, hashed, blake2b = tuple(range(3, 3 + 4 * PAGE_TOKENS)), list[bytes](), hashlib.blake2b

    def counted(data: bytes, *, digest_size: int) -> Any:
        hashed.append(data)
        return blake2b(data, digest_size=digest_size)

    monkeypatch.setattr(hashlib, "blake2b", counted)
    first, *others = siblings(Request(prompt, Sampling(max_tokens=2, seed=0, n=3)))
    leader = quiet.server.generation.begin(first, lambda _: None, None)
    followers = [quiet.server.generation.begin(each, lambda _: None, leader) for each in others]
    assert len(hashed) == 1 + 4, "the revision, and its pages"
    assert [each.keys for each in followers] == [leader.keys] * 2
    assert all(each.keys is not leader.keys for each in followers)


async def test_the_prompts_scores_come_once_and_first(base: Path) -> None:
    for prompt in (PROMPT, PROMPT[:5]):
        async with running(base, limits=Limits(running=4, step_tokens=7)) as engine:
            request = request_of(3, prompt_logprobs=True)
            request.tokens.ids[:] = prompt
            events = await stream(engine, request)
            assert len(events[0].started.prompt_logprobs) == len(prompt) - 1
            assert sum(event.HasField("finished") for event in events) == 3


async def test_a_prompt_alone_is_scored_and_no_token_made(base: Path, adapter: Path) -> None:
    """For any prompt length, beside other requests in a step, and for any number of empty completions."""
    folders: dict[str, Path | None] = {"": None, "a": adapter}
    async with running(base, {"a": adapter}, limits=Limits(running=4, step_tokens=7)) as engine:
        for name, folder in folders.items():
            for prompt in (PROMPT, PROMPT[:7], PROMPT[:1]):
                told = await ask(engine, prompt, name, max_tokens=0, prompt_logprobs=True, temperature=1.0)
                scores = [each.logprob for each in told.started.prompt_logprobs]
                expected = peft_scores(base, folder, prompt) if prompt[1:] else []
                assert scores == pytest.approx(expected, abs=1e-3)
                assert (told.tokens, told.text, told.finished.completion_tokens) == ((), "", 0)
                assert (told.finished.reason, told.finished.prompt_tokens) == (Finished.LENGTH, len(prompt))
        events = await stream(engine, request_of(3, "a", max_tokens=0, prompt_logprobs=True))
        assert [event.WhichOneof("event") for event in events] == ["started", *["finished"] * 3]
        echoed = await ask(engine, PROMPT, "a", max_tokens=0, echo=True)
        assert (len(echoed.started.prompt), echoed.tokens) == (len(PROMPT), ())


async def test_others_have_their_turn_while_a_long_prompt_is_told(quiet: Running) -> None:
    """An answer for 8,000 tokens takes a tenth of a second to build; meanwhile no other client would get a token."""
    parts, prompt, turns = quiet.server._services.parts, (5,) * 2000, 0
    assert parts is not None

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    inbox = Inbox(budget("tiny-0").share())
    inbox.put_nowait(Queued(""))
    inbox.put_nowait(CompletionEvent(0, PromptScored((Scored(5, -1.0, ((6, -2.0),)),) * (len(prompt) - 1))))
    sampling = Sampling(max_tokens=1, seed=0, prompt_logprobs=True)
    asked = CheckedRequest("one", "", prompt, sampling, echo=True, offsets=tuple(range(len(prompt))))
    beside = asyncio.create_task(others())
    event = await anext(answer(asked, inbox, Served("tiny-0", "tests/tiny", "its source"), parts.spelling))
    beside.cancel()
    assert turns > 10
    assert len(event.started.prompt) == len(prompt)
    assert [each.text_offset for each in event.started.prompt_logprobs] == list(range(1, len(prompt)))


async def test_a_prompt_is_counted_as_computed_once(quiet: Running) -> None:
    counted = metrics.TOKENS.labels("prompt")
    asked: list[dict[str, Any]] = [{"max_tokens": 0, "echo": True}, {"max_tokens": 2}]
    for sampling in asked:
        before = counted._value.get()
        await stream(quiet, request_of(3, **sampling))
        assert counted._value.get() - before == len(PROMPT)


async def test_no_length_means_the_default_one(base: Path) -> None:
    async with running(base) as engine:
        for asked in ({}, {"max_tokens": 0}, {"prompt_logprobs": True, "echo": True}):
            told = await ask(engine, PROMPT[:3], ignore_eos=True, **asked)
            assert told.finished.completion_tokens > 100


async def test_a_prompt_that_overflows_has_no_scores(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(base) as engine:
        compute = engine.server.generation._compute

        def overflow(shares: list[Share]) -> tuple[torch.Tensor, list[int]]:
            logits, ends = compute(shares)
            return torch.full_like(logits, torch.nan), ends

        monkeypatch.setattr(engine.server.generation, "_compute", overflow)
        request = request_of(1, max_tokens=0, prompt_logprobs=True)
        refused = await refusal(engine, request)
        assert isinstance(refused, Internal)
        assert "computes NaN or infinity" in str(refused)


async def scored_beside_a_neighbour(engine: Running, n: int) -> tuple[list[GenerateEvent], MintError]:
    """Score a prompt under adapter "bad": what is sent, and the error that ends it; "good" gets its usual answer."""
    expected = await ask(engine, PROMPT, "good", **HOT, seed=3, logprobs=2)
    told: list[GenerateEvent] = []

    async def read() -> None:
        async for event in engine.sampler.Generate(request_of(n, "bad", prompt_logprobs=True, logprobs=3)):
            told.append(event)

    async def spoilt() -> MintError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read()
        return from_rpc_error(caught.value)

    refused, answer = await asyncio.gather(spoilt(), ask(engine, PROMPT, "good", **HOT, seed=3, logprobs=2))
    assert (answer.tokens, answer.scores) == (expected.tokens, expected.scores)
    return told, refused


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("step_tokens", [16, 64])
async def test_nothing_is_told_of_a_prompt_whose_scores_are_no_numbers(
    base: Path, adapter: Path, n: int, step_tokens: int
) -> None:
    """The bad scores may be in the first of several chunks or in the only one; pages are freed, neighbours go on."""
    limits = Limits(running=8, waiting=8, step_tokens=step_tokens)
    async with running(base, {"good": adapter, "bad": adapter}, limits=limits) as engine:
        engine.server.slots.memory[engine.holder.places["bad"]] = torch.inf
        told, refused = await scored_beside_a_neighbour(engine, n)
        assert told == []
        assert isinstance(refused, Internal)
        assert "adapter bad: computes NaN or infinity" in str(refused)
        await until(lambda: engine.holder.users["bad"] == 0)
        assert engine.free_pages == engine.all_pages


async def test_one_score_that_is_no_number_is_enough(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a prompt whose end is finite, so that a token could be chosen."""
    async with running(base) as engine:
        compute = engine.server.generation._compute

        def spoil(shares: list[Share]) -> tuple[torch.Tensor, list[int]]:
            logits, ends = compute(shares)
            logits = logits.clone()
            logits[len(PROMPT) // 2] = torch.nan
            return logits, ends

        monkeypatch.setattr(engine.server.generation, "_compute", spoil)
        refused = await refusal(engine, request_of(1, max_tokens=1, prompt_logprobs=True))
        assert "computes NaN or infinity" in str(refused)
        assert engine.free_pages == engine.all_pages


@pytest.mark.parametrize("n", [-1, 17])
async def test_a_wrong_number_is_refused(base: Path, n: int) -> None:
    async with running(base) as engine:
        refused = await refusal(engine, request_of(n))
        assert isinstance(refused, InvalidRequest)
        assert "sampling.n" in str(refused)


async def test_more_completions_than_places_are_refused_for_good(base: Path) -> None:
    async with running(base, limits=Limits(running=1, waiting=2, step_tokens=64)) as engine:
        assert isinstance(await refusal(engine, request_of(4)), InvalidRequest)
        assert len([event for event in await stream(engine, request_of(3)) if event.HasField("finished")]) == 3


async def test_a_client_that_goes_away_ends_all(base: Path, adapter: Path) -> None:
    """Also when one of them has ended already; the slot is held until the last is gone."""
    async with running(base, {"a": adapter}) as engine:
        gate = Gate(engine, after=3)
        call = engine.sampler.Generate(request_of(3, "a", max_tokens=100))
        await gate.closed()
        assert engine.holder.users == {"a": 1}
        assert engine.server.load_now.running == 3
        call.cancel()
        await until(lambda: len(engine.stepper._cancelled) == 3)
        gate.open()
        await until(lambda: engine.holder.users == {"a": 0})
        assert not engine.server.generation.busy
        assert engine.free_pages == engine.all_pages


async def test_a_failing_completion_ends_the_others(base: Path, adapter: Path) -> None:
    """NaN in one completion is an error of the request; the others stop, and neighbours go on."""
    async with running(base, {"a": adapter}) as engine:
        generation = engine.server.generation
        run, steps = generation._forward.run, 0

        def spoil(*args: Any) -> torch.Tensor:
            nonlocal steps
            steps += 1
            logits = run(*args).clone()
            if steps == 4:
                logits[0] = torch.nan
            return logits

        generation._forward.run = spoil  # type: ignore[assignment, method-assign]
        assert isinstance(await refusal(engine, request_of(3, "a", max_tokens=100)), Internal)
        await until(lambda: engine.holder.users == {"a": 0})
        assert steps < 20
        assert len((await ask(engine, PROMPT, **HOT)).tokens) == 9


async def test_one_adapter_can_not_fill_the_queue(base: Path, adapter: Path) -> None:
    """It gets most of the queue, then Overloaded, while another adapter still finds room."""
    limits = Limits(running=2, waiting=8, step_tokens=64)
    async with running(base, {"a": adapter}, limits=limits) as engine:
        gate = Gate(engine)
        first = asyncio.create_task(ask(engine, PROMPT, "a", max_tokens=2))
        await gate.closed()
        taken = [first, *(asyncio.create_task(ask(engine, PROMPT, "a", max_tokens=2)) for _ in range(7))]
        await until(lambda: engine.server.load_now.waiting == 8)
        refused = await refusal(engine, request_of(1, "a"))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s
        assert "8 of them for a" in str(refused)
        taken.append(asyncio.create_task(ask(engine, PROMPT, max_tokens=2)))
        await until(lambda: engine.server.load_now.waiting == 9)
        gate.open()
        await asyncio.gather(*taken)


async def test_a_request_without_n_is_one(base: Path) -> None:
    async with running(base) as engine:
        events = await stream(engine, request_of(0))
        assert [event.chunk.index for event in events if event.HasField("chunk")] == [0] * 9
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(engine, request_of(1, "no/such"))
        assert from_rpc_error(caught.value).terminal
