"""The engine's greedy answers are PEFT's own: tokens equal, log-probabilities equal to rounding."""

import asyncio
import random
from collections.abc import Coroutine
from pathlib import Path

import pytest
import torch

from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import (
    ALL_SEVEN,
    Answer,
    ask,
    peft_answer,
    peft_scores,
    running,
    save_adapter,
)

NEW_TOKENS = 12
ADAPTERS = {"a/four": 4, "a/eight": 8, "a/sixteen": 16, "b/three": 3}


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of different ranks, the last on only two modules."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(
            base, root / name, rank=rank, targets=("q_proj", "v_proj") if name == "b/three" else ALL_SEVEN
        )
        for name, rank in ADAPTERS.items()
    }


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of 1 to 60 tokens."""
    draw = random.Random(seed)
    return [[draw.randrange(2, 290) for _ in range(draw.choice((1, 5, 16, 17, 33, 60)))] for _ in range(count)]


@pytest.mark.parametrize("name", ["", *ADAPTERS])
async def test_one_request_alone(base: Path, adapters: dict[str, Path], name: str) -> None:
    prompt = prompts(1)[0]
    tokens, scores = peft_answer(base, adapters.get(name), prompt, NEW_TOKENS)
    async with running(base, adapters) as engine:
        answer = await ask(engine, prompt, name, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True)
    assert answer.tokens == tokens
    assert answer.logprobs == pytest.approx(scores, abs=1e-4)
    assert answer.started.revision == engine.holder.revisions.get(name, "")


@pytest.mark.parametrize("step_tokens", [512, 24], ids=["whole prompts", "prompts in small chunks"])
async def test_everybody_in_one_batch(base: Path, adapters: dict[str, Path], step_tokens: int) -> None:
    """The base and four adapters, several requests each, with fewer pages and running places than requests need."""
    names = ["", *ADAPTERS] * 3
    asked = list(zip(names, prompts(len(names), seed=1), strict=True))
    expected = [peft_answer(base, adapters.get(name), prompt, NEW_TOKENS) for name, prompt in asked]
    async with running(base, adapters, Limits(running=10, step_tokens=step_tokens), kv_cache_bytes=1 << 20) as engine:
        answers = await asyncio.gather(
            *(ask(engine, prompt, name, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True) for name, prompt in asked)
        )
    for answer, (tokens, scores) in zip(answers, expected, strict=True):
        assert answer.tokens == tokens
        assert answer.logprobs == pytest.approx(scores, abs=1e-4)


async def test_sixty_four_ranks_solo_and_in_one_batch(base: Path, tmp_path: Path) -> None:
    """Ranks from 1 to 128, each asked alone, then all of them together."""
    ranks = (1, *range(4, 129, 2))
    many = {f"r/{rank}": save_adapter(base, tmp_path / str(rank), rank=rank, lora_alpha=4) for rank in ranks}
    asked = dict(zip(many, prompts(len(many), seed=11), strict=True))
    expected = {name: peft_answer(base, many[name], prompt, 5) for name, prompt in asked.items()}
    async with running(base, many, Limits(running=64), max_rank=128, device_slots=64) as engine:

        def answer(name: str) -> Coroutine[None, None, Answer]:
            return ask(engine, asked[name], name, max_tokens=5, logprobs=0, ignore_eos=True)

        solo = [await answer(name) for name in many]
        mixed = await asyncio.gather(*(answer(name) for name in many))
    for answers in (solo, mixed):
        for found, (tokens, scores) in zip(answers, expected.values(), strict=True):
            assert found.tokens == tokens
            assert found.logprobs == pytest.approx(scores, abs=1e-4)


async def test_pages_that_others_have_used(base: Path, adapters: dict[str, Path]) -> None:
    """The same request, repeated through the same few pages between others, always gets the same answer."""
    prompt = prompts(1, seed=5)[0]
    tokens, _ = peft_answer(base, adapters["a/eight"], prompt, NEW_TOKENS)
    async with running(base, adapters, kv_cache_bytes=220 << 10) as engine:
        assert engine.all_pages < 30
        for name in ("a/eight", "", "a/sixteen", "a/eight", "b/three", "a/eight"):
            for _ in range(3):
                answer = await ask(engine, prompt, name, max_tokens=NEW_TOKENS, ignore_eos=True)
            assert (answer.tokens == tokens) == (name == "a/eight")


async def test_a_slot_that_another_adapter_has_used(base: Path, adapters: dict[str, Path]) -> None:
    """Rank 16 on seven modules, then rank 3 on two in the same slot: nothing of the former remains."""
    prompt = prompts(1, seed=6)[0]
    big, _ = peft_answer(base, adapters["a/sixteen"], prompt, NEW_TOKENS)
    small, _ = peft_answer(base, adapters["b/three"], prompt, NEW_TOKENS)
    bare, _ = peft_answer(base, None, prompt, NEW_TOKENS)
    assert len({big, small, bare}) == 3
    async with running(base, {"slot": adapters["a/sixteen"]}) as engine:

        async def answer() -> tuple[int, ...]:
            return (await ask(engine, prompt, "slot", max_tokens=NEW_TOKENS, ignore_eos=True)).tokens

        assert await answer() == big
        engine.holder.load("slot", adapters["b/three"])
        assert await answer() == small
        engine.holder.clear("slot")
        assert await answer() == bare
        assert not engine.server.slots.memory.any()


async def test_logprobs_of_the_prompt(base: Path, adapters: dict[str, Path]) -> None:
    """Prompt scores are those of one plain forward pass, however the prompt is cut into chunks."""
    prompt = prompts(12, seed=7)[3]
    expected = peft_scores(base, adapters["a/four"], prompt)
    for step_tokens in (512, 7):
        async with running(base, adapters, Limits(running=4, step_tokens=step_tokens)) as engine:
            answer = await ask(engine, prompt, "a/four", max_tokens=2, logprobs=3, prompt_logprobs=True)
        found = answer.started.prompt_logprobs
        assert [score.token_id for score in found] == prompt[1:]
        assert [score.logprob for score in found] == pytest.approx(expected, abs=1e-4)
        assert all(score.top[0].logprob >= score.logprob for score in found)
        assert all(len(score.top) == 3 for score in (*found, *answer.scores))


@pytest.mark.parametrize("name", ["", *ADAPTERS])
async def test_bfloat16(base: Path, adapters: dict[str, Path], name: str) -> None:
    """In bf16 sums are rounded at other places, and with adapters PEFT computes in float32: log-probabilities (spread
    over about 6 nats here) differ by 0.05 on average and 0.25 at most.

    Both score the same tokens as a prompt, so that a flipped token can hide nothing.
    """
    prompt = prompts(12, seed=8)[3] + prompts(12, seed=9)[3]
    expected = torch.tensor(peft_scores(base, adapters.get(name), prompt, torch.bfloat16))
    async with running(base, adapters, dtype="bfloat16") as engine:
        answer = await ask(engine, prompt, name, max_tokens=1, logprobs=0, prompt_logprobs=True)
    found = torch.tensor([score.logprob for score in answer.started.prompt_logprobs])
    difference = (found - expected).abs()
    assert difference.mean() <= 0.05
    assert difference.max() <= 0.25
