"""SmolLM2 upcycled into experts answers like its parent, by the generic pass; with adapters, like merged weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from e2e.samples import prepare
from mint_engine.model.base import Base
from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.model.paged import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from tests.engine.families import fill
from tests.upcycle import upcycle

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
    """Greedy tokens and their log-probabilities; an adapter moves it away."""
    model = upcycle(parent, experts)
    base = Base(model, None, frozenset(), "mixtral", 256, model.config.vocab_size, torch.float32, CPU)  # type: ignore[arg-type]
    slots = Slots(find_modules(model), 2, 2, torch.float32, CPU)
    forward = Forward(base, slots, cache_shape(base.config).make(12, torch.float32, CPU))
    assert forward.compute == "generic"
    tokens, pages = list(TOKENS), [1, 2, 3, 4, 5]
    logits = [forward.run(tokens, [Span(0, len(tokens), 0, pages, NO_SLOT)], [len(tokens) - 1])]
    for _ in range(8):
        tokens.append(int(logits[-1].argmax()))
        logits.append(forward.run(tokens[-1:], [Span(0, 1, len(tokens) - 1, pages, NO_SLOT)], [0]))
    found, expected = torch.cat(logits).log_softmax(-1), own(parent, tokens)[-9:].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    fill(slots, 1, 2)
    adapted = forward.run(TOKENS, [Span(0, len(TOKENS), 0, pages, 1)], [len(TOKENS) - 1])
    assert (adapted.log_softmax(-1) - expected[0]).abs().max() > 0.1
