"""Requests that an engine refuses, each with its error and what is wrong."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from mint_contracts.errors import (
    AdapterNotFound,
    BaseModelNotFound,
    InvalidRequest,
    MintError,
    Overloaded,
    PromptTooLong,
)
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, SamplingParams, TokenIds
from mint_engine.requests import parameters
from mint_engine.requests.prompts import read_prompt
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import CONTEXT, Running, ask, running
from tests.engine.steps import Gate, refusal
from tests.waiting import until


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (GenerateRequest(text="x", base_model="tests/other"), BaseModelNotFound, "tests/tiny"),
        (GenerateRequest(text="x", adapter="no/such"), AdapterNotFound, "no wave"),
        (GenerateRequest(text="x", adapter="../etc"), InvalidRequest, "valid name"),
        (GenerateRequest(text="x", request_id="i" * 200), InvalidRequest, "request_id"),
        (GenerateRequest(text="x", client="c" * 257), InvalidRequest, "client"),
        (GenerateRequest(), InvalidRequest, "missing"),
        (GenerateRequest(text=""), InvalidRequest, "empty"),
        (GenerateRequest(tokens=TokenIds()), InvalidRequest, "empty"),
        (GenerateRequest(tokens=TokenIds(ids=[1, 5000])), InvalidRequest, "5000"),
        (GenerateRequest(tokens=TokenIds(ids=[-1])), InvalidRequest, "-1"),
        (GenerateRequest(chat=Chat()), InvalidRequest, "no messages"),
        (GenerateRequest(tokens=TokenIds(ids=[3] * CONTEXT)), PromptTooLong, f"has {CONTEXT} tokens"),
        (GenerateRequest(text="dog " * 400), PromptTooLong, "Shorten"),
        (GenerateRequest(text="dog " * 40_000), PromptTooLong, "characters"),
        (GenerateRequest(chat=Chat(messages=[Message()] * 100_000)), PromptTooLong, "has 100000 messages"),
        (GenerateRequest(chat=Chat(messages=[Message(role="x" * 40_000)])), PromptTooLong, "characters"),
        (GenerateRequest(text="x", sampling=SamplingParams(temperature=-1)), InvalidRequest, "temperature"),
        (GenerateRequest(text="x", sampling=SamplingParams(temperature=float("nan"))), InvalidRequest, "temperature"),
        (GenerateRequest(text="x", sampling=SamplingParams(top_p=1.5)), InvalidRequest, "top_p"),
        (GenerateRequest(text="x", sampling=SamplingParams(top_k=-2)), InvalidRequest, "top_k"),
        (GenerateRequest(text="x", sampling=SamplingParams(min_p=2)), InvalidRequest, "min_p"),
        (GenerateRequest(text="x", sampling=SamplingParams(max_tokens=-1)), InvalidRequest, "max_tokens"),
        (GenerateRequest(text="x", sampling=SamplingParams(logprobs=21)), InvalidRequest, "logprobs"),
        (
            GenerateRequest(text="x", sampling=SamplingParams(presence_penalty=2.5)),
            InvalidRequest,
            "presence_penalty",
        ),
        (GenerateRequest(text="x", sampling=SamplingParams(frequency_penalty=-3)), InvalidRequest, "from -2 to 2"),
        (GenerateRequest(text="x", sampling=SamplingParams(repetition_penalty=-1)), InvalidRequest, "repetition"),
        (GenerateRequest(text="x", sampling=SamplingParams(repetition_penalty=1e-9)), InvalidRequest, "0.01 to 100"),
        (GenerateRequest(text="x", sampling=SamplingParams(logit_bias={5000: 1})), InvalidRequest, "has token 5000"),
        (GenerateRequest(text="x", sampling=SamplingParams(logit_bias={-1: 1})), InvalidRequest, "has token -1"),
        (GenerateRequest(text="x", sampling=SamplingParams(logit_bias={1: 101})), InvalidRequest, "logit_bias[1]"),
        (
            GenerateRequest(text="x", sampling=SamplingParams(logit_bias=dict.fromkeys(range(301), 1.0))),
            InvalidRequest,
            "at most 300",
        ),
        (GenerateRequest(text="x", sampling=SamplingParams(stop=[""])), InvalidRequest, "stop"),
        (GenerateRequest(text="x", sampling=SamplingParams(stop=["a"] * 17)), InvalidRequest, "stop"),
    ],
)
async def test_refusals(quiet: Running, request_: GenerateRequest, error: type[MintError], says: str) -> None:
    refused = await refusal(quiet, request_)
    assert type(refused) is error
    assert says in str(refused)
    assert (await ask(quiet, [5], max_tokens=1)).tokens, "everything else goes on"


async def test_a_refusal_is_logged_with_the_id_that_the_gateway_logs(quiet: Running) -> None:
    with capture_logs() as logs:
        await refusal(quiet, GenerateRequest(text="x", adapter="no/such", request_id="r-7"))
    [line] = [each for each in logs if each["event"] == "request_failed"]
    assert (line["request_id"], line["adapter"], line["reason"]) == ("r-7", "no/such", "AdapterNotFound")


@pytest.mark.parametrize(
    "asked",
    [
        GenerateRequest(tokens=TokenIds(ids=[3] * CONTEXT)),
        GenerateRequest(text="dog " * 400),
        GenerateRequest(text="dog " * 40_000),
        GenerateRequest(chat=Chat(messages=[Message()] * 100_000)),
    ],
)
async def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_look_for(
    quiet: Running, asked: GenerateRequest
) -> None:
    """On this error litellm asks the fallback model, and langchain-based clients shorten their history."""
    refused = await refusal(quiet, asked)
    assert str(refused).startswith(f"This model's maximum context length is {CONTEXT} tokens")
    assert "prompt is too long" in str(refused)


async def test_more_log_probabilities_of_a_prompt_than_can_be_told(
    quiet: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameters, "MOST_PROMPT_LOGPROBS", 24)
    asked = SamplingParams(max_tokens=1, logprobs=3, prompt_logprobs=True)
    told = [
        event async for event in quiet.sampler.Generate(GenerateRequest(tokens=TokenIds(ids=[5] * 6), sampling=asked))
    ]
    assert len(told[0].started.prompt_logprobs) == 5
    refused = await refusal(quiet, GenerateRequest(tokens=TokenIds(ids=[5] * 7), sampling=asked))
    assert isinstance(refused, InvalidRequest)
    assert "would be 28 for 7 tokens" in str(refused)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_token_that_only_the_tokenizer_knows_is_refused(base: Path, kind: str) -> None:
    """Like padding tokens that many fine-tunes add: the base has no embedding for it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<added>"]) == 1
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<added>{% endfor %}"
    chat = GenerateRequest(chat=Chat(messages=[Message(role="user", content="fox")]))
    told = {"text": GenerateRequest(text="fox <added>"), "chat": chat}
    with pytest.raises(InvalidRequest, match=f"has token {size}; this base has tokens 0 to {size - 1}"):
        read_prompt(told[kind], tokenizer, size, CONTEXT)


async def test_a_full_queue_says_when_to_come_back(base: Path) -> None:
    limits = Limits(running=1, waiting=2, step_tokens=64)
    async with running(base, limits=limits) as engine:
        gate = Gate(engine)
        first = asyncio.create_task(ask(engine, [5], max_tokens=3))
        await gate.closed()
        others = [asyncio.create_task(ask(engine, [5], max_tokens=3)) for _ in range(2)]
        await until(lambda: engine.server.load_now.waiting == 3)
        refused = await refusal(engine, GenerateRequest(text="dog"))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s is not None
        assert 0 < refused.retry_after_s <= 30
        gate.open()
        await asyncio.gather(first, *others)
        assert (await ask(engine, [5], max_tokens=1)).tokens, "and then there is room again"


async def test_one_clients_requests_to_the_bare_base_leave_room_for_anothers(base: Path) -> None:
    limits = Limits(running=1, waiting=4, step_tokens=64)
    async with running(base, limits=limits) as engine:
        gate = Gate(engine)

        def asked(client: str) -> GenerateRequest:
            return GenerateRequest(text="dog", client=client, sampling=SamplingParams(max_tokens=1))

        async def answer(client: str) -> None:
            assert [event async for event in engine.sampler.Generate(asked(client))]

        first = asyncio.create_task(answer("hot"))
        await gate.closed()
        others = [asyncio.create_task(answer("hot")) for _ in range(3)]
        await until(lambda: engine.server.load_now.waiting == 4)
        refused = await refusal(engine, asked("hot"))
        assert isinstance(refused, Overloaded)
        assert "4 of them with your key for the bare base; " in str(refused)
        cold = asyncio.create_task(answer("cold"))
        await until(lambda: engine.server.load_now.waiting == 5)
        gate.open()
        await asyncio.gather(first, *others, cold)
