"""An answer that another engine began goes on here, with the tokens, text and scores that it would have had there."""

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from mint_contracts.errors import EngineUnavailable, InvalidRequest, MintError
from mint_contracts.sampling_pb2 import (
    Begun,
    BegunCompletion,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    TokenIds,
)
from mint_contracts.wire import from_rpc_error
from mint_engine.requests.events import Sink
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.request import Completion, Request
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import Running, running

PROMPT = list(range(5, 45))
LONG = SamplingParams(max_tokens=100, ignore_eos=True)
WAYS: dict[str, dict[str, Any]] = {
    "greedy, with scores": {"logprobs": 2},
    "drawn": {"temperature": 1.0, "seed": 7, "top_k": 50},
    "penalised": {"temperature": 0.8, "seed": 3, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "several": {"temperature": 1.0, "seed": 9, "n": 3},
    "shaped": {"temperature": 1.0, "seed": 5, "regex": "[a-f]{3}-([0-9][a-z]){4}"},
    "shaped, several": {"temperature": 1.0, "seed": 5, "n": 2, "regex": "[a-f]{3}-([0-9][a-z]){2,4}"},
}


def request_of(**sampling: Any) -> GenerateRequest:
    ends = {} if "regex" in sampling else {"ignore_eos": True}
    params = SamplingParams(**({"max_tokens": 14} | ends | sampling))
    return GenerateRequest(tokens=TokenIds(ids=PROMPT), adapter="a", sampling=params)


def begun(request: GenerateRequest, had: Sequence[GenerateEvent]) -> GenerateRequest:
    """Return the request of a client that had these events, the first of which is Started."""
    completions = [BegunCompletion() for _ in range(request.sampling.n or 1)]
    for event in had:
        completions[event.chunk.index].token_ids.extend(event.chunk.token_ids)
        if event.HasField("finished"):
            completions[event.finished.index].finished = True
    started = had[0].started
    what = Begun(revision=started.revision, base_source=started.base_source, completions=completions)
    return GenerateRequest(tokens=request.tokens, adapter=request.adapter, sampling=request.sampling, begun=what)


async def stream(engine: Running, request: GenerateRequest) -> list[GenerateEvent]:
    return [event async for event in engine.sampler.Generate(request, timeout=60)]


def of_each(events: Sequence[GenerateEvent], n: int) -> list[list[GenerateEvent]]:
    """Return the events of each completion, but for what does not belong to the answer: how much was cached."""
    found: list[list[GenerateEvent]] = [[] for _ in range(n)]
    for event in events:
        if event.HasField("chunk"):
            found[event.chunk.index].append(event)
        elif event.HasField("finished"):
            event.finished.ClearField("cached_tokens")
            found[event.finished.index].append(event)
    return found


def rounded(events: list[list[GenerateEvent]]) -> list[list[GenerateEvent]]:
    """Round scores: a token computed as part of a prompt differs in its last bits from one computed alone."""
    for event in (event for each in events for event in each):
        for score in event.chunk.logprobs:
            score.logprob = round(score.logprob, 3)
            for top in score.top:
                top.logprob = round(top.logprob, 3)
    return events


@pytest.mark.parametrize("way", WAYS)
async def test_it_goes_on_wherever_it_was_broken_off(base: Path, adapter: Path, way: str) -> None:
    request = request_of(**WAYS[way])
    n = request.sampling.n or 1
    async with running(base, {"a": adapter}) as engine:
        whole = await stream(engine, request)
        assert not whole[0].started.goes_on
        for cut in range(1, len(whole) - 1, 3):
            rest = await stream(engine, begun(request, whole[:cut]))
            assert rest[0].started.goes_on
            assert rounded(of_each(rest, n)) == rounded(of_each(whole[cut:], n)), cut


async def test_one_that_had_all_but_its_end_just_ends(base: Path, adapter: Path) -> None:
    """Its last token may have been a stop, which is not to be drawn again."""
    async with running(base, {"a": adapter}) as engine:
        for sampling in ({}, {"temperature": 1.0, "seed": 4, "n": 2}, {"regex": "[a-f]{3}"}):
            request = request_of(**sampling)
            whole = await stream(engine, request)
            last = next(at for at, event in enumerate(whole) if event.HasField("finished"))
            rest = await stream(engine, begun(request, whole[:last]))
            n = request.sampling.n or 1
            assert of_each(rest, n) == of_each(whole[last:], n)


async def test_it_needs_places_only_for_what_is_left_of_it(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}, Limits(running=1, waiting=1)) as engine:
        request = request_of(n=2)
        whole = await stream(engine, request)
        going_on = begun(request, whole[:4])
        first, second = (
            [token for event in whole if event.chunk.index == index for token in event.chunk.token_ids]
            for index in range(2)
        )
        going_on.begun.completions[0].CopyFrom(BegunCompletion(token_ids=first, finished=True))
        going_on.begun.completions[1].CopyFrom(BegunCompletion(token_ids=second[:5]))
        other = engine.sampler.Generate(GenerateRequest(tokens=TokenIds(ids=[5]), sampling=LONG), timeout=60)
        await other.read()
        rest = await stream(engine, going_on)
        other.cancel()
        assert [token for event in rest for token in event.chunk.token_ids] == second[5:]


async def test_a_stop_string_is_found_across_the_break(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}) as engine:
        free = await stream(engine, request_of())
        said = "".join(event.chunk.text for event in free)
        request = request_of(stop=[said[5:9]])
        whole = await stream(engine, request)
        text = "".join(event.chunk.text for event in whole)
        assert said.startswith(text)
        assert len(text) <= 5
        for cut in range(1, len(whole) - 1):
            rest = await stream(engine, begun(request, whole[:cut]))
            assert of_each(rest, 1) == of_each(whole[cut:], 1), cut


async def test_nothing_of_the_prompt_is_told_again(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}) as engine:
        request = request_of(echo=True, logprobs=1, prompt_logprobs=True)
        whole = await stream(engine, request)
        assert len(whole[0].started.prompt) == len(PROMPT)
        rest = await stream(engine, begun(request, whole[:3]))
        assert not rest[0].started.prompt
        assert not rest[0].started.prompt_logprobs
        assert rounded(of_each(rest, 1)) == rounded(of_each(whole[3:], 1))


async def test_its_tokens_are_read_beside_what_else_runs_on_threads(base: Path, adapter: Path) -> None:
    """As training's calls, many of which may come at once."""
    loop, go_on = asyncio.get_running_loop(), threading.Event()
    async with running(base, {"a": adapter}) as engine:
        request = request_of()
        whole = await stream(engine, request)
        loop.set_default_executor(ThreadPoolExecutor(1))
        others = asyncio.ensure_future(asyncio.to_thread(go_on.wait))
        try:
            rest = await stream(engine, begun(request, whole[:4]))
        finally:
            go_on.set()
            await others
        assert of_each(rest, 1) == of_each(whole[4:], 1)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="needs two cores")
async def test_its_tokens_are_read_without_a_team_of_threads(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more threads than cores, steps' own would sleep between products from then on (see `end_team`)."""
    async with running(base, {"a": adapter}) as engine:
        request = request_of(presence_penalty=0.5)
        whole = await stream(engine, request)
        begin, found = engine.stepper.begin, list[int]()

        def noted(requests: list[Request], sinks: list[Sink]) -> list[Completion]:
            found.append(torch.get_num_threads())
            return begin(requests, sinks)

        monkeypatch.setattr(engine.stepper, "begin", noted)
        rest = await stream(engine, begun(request, whole[:4]))
        assert of_each(rest, 1) == of_each(whole[4:], 1)
    assert found == [1]


async def test_its_tokens_are_counted_for_penalties_before_its_first_step(base: Path) -> None:
    """In the threads that read them: all others' step would wait for it."""
    said = (7, 8, 7, 9)
    sampling = Sampling(max_tokens=9, seed=0, presence_penalty=0.5, ignore_eos=True)
    async with running(base) as engine:
        [going_on] = engine.stepper.begin([Request(tuple(PROMPT), sampling, begun=said)], [lambda event: None])
    counts = going_on.token_counts
    assert counts is not None
    assert dict(zip(counts.chosen.tolist(), counts.times.tolist(), strict=True)) == Counter(said)


async def test_what_cannot_go_on_here_is_refused(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}) as engine:
        request = request_of()
        whole = await stream(engine, request)

        async def refusal(**changes: Any) -> MintError:
            asked = begun(request, whole[:4])
            for name, value in changes.items():
                part = asked.sampling if name in {"routes", "n"} else asked.begun
                setattr(part, name, value)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream(engine, asked)
            return from_rpc_error(caught.value)

        assert isinstance(await refusal(revision="another"), EngineUnavailable)
        assert isinstance(await refusal(base_source="another"), EngineUnavailable)
        assert "the request asks for 2" in str(await refusal(n=2))
        asked = begun(request, whole[:4])
        for tokens, problem in (([9999], "tokens that this base has not"), ([1] * 15, "15 tokens of at most 14")):
            asked.begun.completions[0].token_ids[:] = tokens
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream(engine, asked)
            found = from_rpc_error(caught.value)
            assert isinstance(found, InvalidRequest)
            assert problem in str(found)
