"""SmolLM2 upcycled into experts answers like its parent, by either pass; with adapters, like merged weights."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from e2e.samples import prepare
from mint_engine.build import build
from mint_engine.model.base import Base
from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.scheduler import Limits
from tests.engine.families import fill, merge, plain_logits
from tests.engine.running import settings_for
from tests.upcycle import upcycle, write

CPU = torch.device("cpu")
TOKENS = list(range(100, 160))


@pytest.fixture(scope="module")
def parent() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(prepare().base, dtype=torch.float32)
    model.train(False)
    assert isinstance(model, PreTrainedModel)
    return model


@torch.inference_mode()
def own(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.timeout(1200)  # the first run on a machine makes the samples
@pytest.mark.parametrize("experts", [8, 32])
def test_answers_like_its_parent(parent: PreTrainedModel, experts: int) -> None:
    """Greedy tokens and their log-probabilities are equal; an adapter changes them."""
    model = upcycle(parent, experts)
    base = Base(model, None, frozenset(), "mixtral", 256, model.config.vocab_size, torch.float32, CPU)  # type: ignore[arg-type]
    slots = Slots(find_modules(model), 2, 2, torch.float32, CPU)
    forward = Forward(base, slots, cache_shape(base.config).make(12, torch.float32, CPU))
    assert forward.compute == "generic"
    tokens, pages = list(TOKENS), [1, 2, 3, 4, 5]
    logits = [forward.run(tokens, [Span(0, len(tokens), 0, pages, NO_SLOT)], [len(tokens) - 1]).clone()]
    for _ in range(8):
        tokens.append(int(logits[-1].argmax()))
        logits.append(forward.run(tokens[-1:], [Span(0, 1, len(tokens) - 1, pages, NO_SLOT)], [0]).clone())
    found, expected = torch.cat(logits).log_softmax(-1), own(parent, tokens)[-9:].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    fill(slots, 1, 2)
    adapted = forward.run(TOKENS, [Span(0, len(TOKENS), 0, pages, 1)], [len(TOKENS) - 1])
    assert (adapted.log_softmax(-1) - expected[0]).abs().max() > 0.1


@pytest.mark.timeout(1200)
def test_as_it_is_served_from_files(parent: PreTrainedModel, tmp_path: Path) -> None:
    """Experts in their own memory, which the engine's kernels take; two layers, compared with a parent of two."""
    config = copy.deepcopy(parent.config)
    config.num_hidden_layers = 2
    small = type(parent)(config)
    small.load_state_dict({name: parent.state_dict()[name] for name in small.state_dict()})
    small.save_pretrained(tmp_path / "parent")
    for file in prepare().base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "parent")
    write(tmp_path / "parent", tmp_path / "experts", 8)
    settings = settings_for(tmp_path / "experts", max_rank=4, device_slots=2)
    _, slots, generation = build(settings, tmp_path / "experts", Limits())
    assert generation.compute.startswith("lean")

    def score(slot: int) -> torch.Tensor:
        """A chunk, then token by token."""
        found, pages = [], [1, 2, 3, 4]
        for start, stop in ((0, 50), *((at, at + 1) for at in range(50, len(TOKENS)))):
            span = Span(0, stop - start, start, pages, slot)
            found.append(generation._forward.run(TOKENS[start:stop], [span], range(stop - start)).clone())
        return torch.cat(found)

    bare = score(NO_SLOT)
    check(bare, own(small, TOKENS))
    for slot in range(2):
        fill(slots, slot, 2 + slot)
        adapted = score(slot)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "experts", dtype=torch.float32)
        check(adapted, plain_logits(merge(merged, slots, slot), TOKENS))
        assert (adapted.log_softmax(-1) - bare.log_softmax(-1)).abs().max() > 0.1


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=2e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
