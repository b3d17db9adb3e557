"""Prompts that are scored without a completion, as evaluation harnesses ask: a real engine, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from tests.engine.running import peft_scores, save_adapter, save_base
from tests.gateway.asking import CONTEXT, asking
from tests.gateway.scene import BASE, Scene

PIRATE = "demo/pirate"
PROMPT = "the lazy dog jumps over the quick fox"
ASKED: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapter"), rank=4)


@pytest.fixture
async def client(scene: Scene, base: Path, adapter: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(scene, base, {PIRATE: adapter}) as client:
        yield client


async def test_a_prompt_is_told_with_its_scores_and_nothing_after_it(
    client: openai.AsyncOpenAI, base: Path, adapter: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = tokenizer.encode(PROMPT)
    for model, folder in ((BASE, None), (PIRATE, adapter)):
        completion = await client.completions.create(model=model, **ASKED)
        [choice] = completion.choices
        assert (choice.text, choice.finish_reason) == (PROMPT, "length")
        assert completion.usage
        assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (len(tokens), 0)
        assert choice.logprobs
        assert choice.logprobs.tokens == [tokenizer.decode([token]) for token in tokens]
        assert choice.logprobs.token_logprobs
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(peft_scores(base, folder, tokens), abs=1e-3)


async def test_streams_tell_the_same(client: openai.AsyncOpenAI) -> None:
    [whole] = (await client.completions.create(model=PIRATE, **ASKED)).choices
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
    stream = await client.completions.create(model=PIRATE, **ASKED, **usage, stream=True)
    pieces = [piece async for piece in stream]
    begin, end, counts = pieces
    assert begin.choices[0].text == whole.text
    assert begin.choices[0].logprobs == whole.logprobs
    assert (end.choices[0].text, end.choices[0].finish_reason) == ("", "length")
    assert counts.usage
    assert counts.usage.completion_tokens == 0


async def test_without_scores_and_of_several_prompts_and_completions(client: openai.AsyncOpenAI) -> None:
    completion = await client.completions.create(model=BASE, prompt=["the", "the fox"], n=2, max_tokens=0, echo=True)
    assert [(each.text, each.finish_reason, each.logprobs) for each in completion.choices] == [
        ("the", "length", None),
        ("the", "length", None),
        ("the fox", "length", None),
        ("the fox", "length", None),
    ]


async def test_a_prompt_of_tokens_may_be_told_too(client: openai.AsyncOpenAI, base: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(base).encode(PROMPT)
    [choice] = (await client.completions.create(model=BASE, **ASKED | {"prompt": tokens})).choices
    assert choice.text == PROMPT
