"""Windows at least as long as any request, which the cache ignores; and those that a request exceeds."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    PhimoeConfig,
    PreTrainedConfig,
)

from mint_contracts.errors import Internal
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_engine.build import build
from mint_engine.model.base import Base
from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.scheduler import Limits
from tests.engine.families import CPU, SIZES, VOCABULARY, fill, make_model, merge, plain_logits, span
from tests.engine.running import ask, peft_answer, running, settings_for
from tests.engine.saved_families import save_adapter, save_base
from tests.engine.sliding_families import SLIDING, WINDOW


def make(config: PreTrainedConfig, context: int) -> Forward:
    """A base for requests of up to `context` tokens, with an adapter on all of it in slot 0."""
    model = make_model(config)
    base = Base(model, None, frozenset(), type(model).__name__, context, VOCABULARY, torch.float32, CPU)  # type: ignore[arg-type]
    slots = Slots(find_modules(model), 1, 8, torch.float32, CPU)
    fill(slots, 0, 4)
    cache = cache_shape(base.config, context_length=context).make(24, torch.float32, CPU)
    return Forward(base, slots, cache)


def play(forward: Forward, length: int, slot: int) -> torch.Tensor:
    """Logits of a request of that length: a chunk, and the rest token by token."""
    tokens, parts = [(7 * at + 5) % VOCABULARY for at in range(length)], []
    for start, stop in ((0, 30), *((at, at + 1) for at in range(30, length))):
        part = span(forward.cache, 0, stop - start, start, [1, 2, 3, 4][: -(-stop // 16)], slot)
        parts.append(forward.run(tokens[start:stop], [part], range(stop - start)).to(torch.float32, copy=True))
    return torch.cat(parts)


def plain(config: PreTrainedConfig, forward: Forward, length: int, slot: int) -> torch.Tensor:
    """The same by transformers."""
    model = make_model(config)
    model = model if slot == NO_SLOT else merge(model, forward.slots, slot)
    return plain_logits(model, [(7 * at + 5) % VOCABULARY for at in range(length)])


@pytest.mark.parametrize("slot", [0, NO_SLOT])
@pytest.mark.parametrize("name", SLIDING)
def test_a_request_as_long_as_the_window_sees_all_of_it(name: str, slot: int) -> None:
    """Including its last token, which sees itself and everything before it."""
    config = SLIDING[name]
    forward = make(config, WINDOW)
    assert forward.compute.startswith("lean")
    assert forward.cache.groups.windows == (None,)
    found = play(forward, WINDOW, slot)
    torch.testing.assert_close(found, plain(config, forward, WINDOW, slot), rtol=0, atol=2e-3)


# Its attention knows no window: in transformers only the masks have it.
PHI_MOE = PhimoeConfig(**SIZES, sliding_window=WINDOW, num_local_experts=4)


@pytest.mark.parametrize("name", [*SLIDING, "phimoe"])
def test_one_token_more_and_the_window_binds(name: str) -> None:
    """The engine's kernels and transformers' modules see only the window: a wider one would give another answer."""
    config = SLIDING.get(name, PHI_MOE)
    forward = make(config, WINDOW + 1)
    assert forward.compute.startswith("lean" if name in SLIDING else "generic")
    assert WINDOW in forward.cache.groups.windows
    found = play(forward, WINDOW + 1, 0)
    torch.testing.assert_close(found, plain(config, forward, WINDOW + 1, 0), rtol=0, atol=2e-3)
    wide = copy.deepcopy(config)
    wide.sliding_window = WINDOW + 1
    other = plain(wide, forward, WINDOW + 1, 0)
    torch.testing.assert_close(found[:-1], other[:-1], rtol=0, atol=2e-3)
    assert (found[-1] - other[-1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("ranks", "context", "kept"), [(1, WINDOW, None), (1, WINDOW + 1, WINDOW), (2, WINDOW, None)]
)
def test_an_engine_goes_by_its_own_context_length(ranks: int, context: int, kept: int | None, tmp_path: Path) -> None:
    """Even if the base has more positions."""
    folder = save_base("mistral", tmp_path, sliding_window=WINDOW)
    told = settings_for(folder, context_length=context, tensor_parallel_size=ranks)
    base, _, generation = build(told, folder, Limits())
    generation.close()
    assert base.config.max_position_embeddings > base.context_length == context
    assert generation.scheduler.windows == (kept,)
    assert generation.compute.startswith("lean")


@pytest.mark.parametrize("context", [WINDOW, 2 * WINDOW])
async def test_answers_up_to_the_window_and_beyond_are_pefts(context: int, tmp_path: Path) -> None:
    folder = save_base("mistral", tmp_path / "base", sliding_window=WINDOW)
    adapter = save_adapter(folder, tmp_path / "a", 4, target_modules=["q_proj", "v_proj", "down_proj"])
    prompt = [(11 * at) % 290 for at in range(context - 8)]
    expected, scores = peft_answer(folder, adapter, prompt, 8)
    async with running(folder, {"t/a": adapter}, context_length=context) as engine:
        assert engine.server.generation.compute.startswith("lean")
        answer = await ask(engine, prompt, "t/a", max_tokens=8, logprobs=0, ignore_eos=True)
    assert answer.tokens == expected
    assert answer.logprobs == pytest.approx(scores, abs=1e-3)


async def test_answers_longer_than_all_pages_of_the_cache_are_pefts(tmp_path: Path) -> None:
    """If every layer slides, a request keeps only its window's pages, and may have more tokens than all pages."""
    folder = save_base("mistral", tmp_path / "base", sliding_window=WINDOW, max_position_embeddings=1024)
    adapter = save_adapter(folder, tmp_path / "a", 4, target_modules=["q_proj", "v_proj", "down_proj"])
    prompt = [(11 * at) % 290 for at in range(1000)]
    expected, scores = peft_answer(folder, adapter, prompt, 8)
    async with running(folder, {"t/a": adapter}, context_length=1024, kv_cache_bytes=500_000) as engine:
        assert engine.server.generation.compute.startswith("lean")
        assert engine.server.generation.scheduler.pages.total * PAGE_TOKENS < len(prompt)
        answer = await ask(engine, prompt, "t/a", max_tokens=8, logprobs=0, ignore_eos=True)
    assert answer.tokens == expected
    assert answer.logprobs == pytest.approx(scores, abs=1e-3)


def test_a_position_beyond_those_that_the_base_was_read_for_is_refused() -> None:
    """Kernels would read whatever lies behind the rotary angles."""
    forward = make(SLIDING["mistral"], 60)
    part = span(forward.cache, 0, 1, 59, [1, 2, 3, 4], NO_SLOT)
    forward.run([1], [part], [0])
    with pytest.raises(Internal, match="has a request of 61 tokens, and the base was read for 60"):
        forward.run([1], [replace(part, position=60)], [0])
