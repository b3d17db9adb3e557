"""Log-probabilities of prompts: all requests in flight share a budget, and reserve their part before any step."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from mint_contracts.errors import AdapterNotFound, InvalidRequest, Overloaded
from mint_contracts.sampling_pb2 import GenerateRequest, SamplingParams, TokenIds
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_engine.requests import prompt_logprobs
from mint_engine.requests.parameters import MOST_LOGPROBS, MOST_PROMPT_LOGPROBS, Sampling
from mint_engine.scheduling.stepper import Load
from tests.engine.running import Running, ask, running
from tests.engine.steps import Gate, refusal
from tests.waiting import until

PROMPT = list(range(5, 25))
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]  # takes little of what nobody reads
EACH = 20 * 21 * 320 - (32 << 10)  # bytes of the budget that `asked` takes: a call's first 32 KiB are its own


def asked(**changes: Any) -> GenerateRequest:
    wanted: dict[str, Any] = {"max_tokens": 2, "logprobs": 20, "prompt_logprobs": True, "ignore_eos": True} | changes
    return GenerateRequest(tokens=TokenIds(ids=PROMPT), sampling=SamplingParams(**wanted))


def taken(engine: Running) -> int:
    return engine.server._services._scored.taken


def test_one_request_of_the_most_that_may_be_asked_for_always_fits_alone() -> None:
    budget = prompt_logprobs.budget("engine e-0")
    tokens = MOST_PROMPT_LOGPROBS // (1 + MOST_LOGPROBS)
    most = Sampling(1, 0, logprobs=MOST_LOGPROBS, prompt_logprobs=True)
    with budget.share() as first, budget.share() as second:
        first.fill(prompt_logprobs.weigh(tokens, most))
        with pytest.raises(Overloaded, match="engine e-0: holds 512 MiB of prompts' log-probabilities"):
            second.fill(prompt_logprobs.weigh(tokens, most))


def test_requests_without_prompt_scores_need_no_room() -> None:
    assert prompt_logprobs.weigh(1000, Sampling(1, 0, logprobs=20)) == 0
    assert prompt_logprobs.weigh(1000, Sampling(1, 0, prompt_logprobs=True)) == 320_000


async def test_without_room_a_request_is_told_to_retry_before_its_prompt_is_computed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "MOST_TOGETHER", EACH)
    async with running(base) as engine:
        gate = Gate(engine)
        call = engine.sampler.Generate(asked())
        await gate.closed()
        refused = await refusal(engine, asked())
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s
        assert engine.server.load_now == Load(0, 1), "what is refused is not queued"
        gate.open()
        assert len([event async for event in call if event.HasField("finished")]) == 1
        await until(lambda: taken(engine) == 0)
        assert (await ask(engine, PROMPT, max_tokens=2, logprobs=20, prompt_logprobs=True)).tokens


async def test_others_go_on_where_there_is_no_room_for_more(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ask for none, or for so few that they fit in a call's own allowance."""
    monkeypatch.setattr(prompt_logprobs, "MOST_TOGETHER", 0)
    async with running(base) as engine:
        assert isinstance(await refusal(engine, asked()), Overloaded)
        assert (await ask(engine, PROMPT, max_tokens=2, logprobs=20)).tokens
        few = await ask(engine, PROMPT, max_tokens=2, logprobs=0, prompt_logprobs=True)
        assert len(few.started.prompt_logprobs) == len(PROMPT) - 1


async def test_unread_scores_count_until_the_call_ends(base: Path) -> None:
    async with running(base) as engine:
        target = f"127.0.0.1:{engine.server.port}"
        async with grpc.aio.insecure_channel(target, options=NARROW) as channel:
            call = SamplerStub(channel).Generate(asked(n=8, max_tokens=120), timeout=60)
            await until(lambda: taken(engine) == EACH)
            await until(lambda: engine.server.load_now == Load(0, 0))
            assert taken(engine) == EACH, "computed, and not read"
            call.cancel()
            await until(lambda: taken(engine) == 0)


async def test_a_request_that_is_refused_for_something_else_leaves_its_room(base: Path) -> None:
    async with running(base) as engine:
        unknown = asked()
        unknown.adapter = "a/nobody"
        assert isinstance(await refusal(engine, unknown), AdapterNotFound)
        assert isinstance(await refusal(engine, asked(regex="(", ignore_eos=False)), InvalidRequest)
        await until(lambda: taken(engine) == 0)
