"""The lean training pass computes what the generic one does, for every family it takes."""

import itertools
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from mint_contracts.training import Loss
from mint_engine.training.example import PolicyBatch
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome
from tests.engine.training.scene import LLAMA, SIZES, base_of, groups, learn, model_of, policies, trainer_of

TAKEN: dict[str, PreTrainedConfig] = {
    "llama": LLAMA,
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
}
# Relative to the whole gradient's norm. In bf16 the two round at other places, and a clip may fall on either side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def gradients(config: PreTrainedConfig, dtype: torch.dtype, *, lean: bool) -> tuple[Trainer, dict[str, LossOutcome]]:
    trainer = trainer_of(config, dtype, lean=lean)
    batches = [
        PolicyBatch(name, groups(number), Loss(kl_coefficient=0.1 * number))
        for number, name in enumerate(policies(trainer, 3))
    ]
    return trainer, learn(trainer, batches)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", TAKEN)
def test_lean_equals_generic(family: str, dtype: torch.dtype) -> None:
    (lean, found), (generic, expected) = (gradients(TAKEN[family], dtype, lean=lean) for lean in (True, False))
    assert lean.compute.startswith("lean")
    assert generic.compute == "generic"
    for name in lean.names:
        ours, theirs = lean.policy(name).gradient, generic.policy(name).gradient
        assert ours is not None
        assert theirs is not None
        assert float((ours - theirs).norm() / theirs.norm()) < TOLERANCE[dtype]
        for one, other in zip(found[name].logprobs, expected[name].logprobs, strict=True):
            assert abs(one - other).max() < (1e-4 if dtype == torch.float32 else 0.3)


def test_other_families_take_the_generic_pass() -> None:
    assert trainer_of(GemmaConfig(**SIZES)).compute == "generic"


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_the_base_computes_as_before_and_is_held_once(lean: bool) -> None:
    """Training's view of the weights is the base's own memory, and its modules give the same as ever."""
    base, tokens = base_of(LLAMA, torch.float32), torch.tensor([[1, 2, 3]])
    before: Any = model_of(LLAMA, torch.float32)
    with torch.inference_mode():
        expected = before(input_ids=tokens).logits
    trainer = Trainer(base, {}, max_rank=4, lean=lean)
    assert trainer.compute.startswith("lean" if lean else "generic")
    with torch.inference_mode():
        assert torch.equal(base.model(input_ids=tokens).logits, expected)
    layer: Any = base.model.get_submodule("model.layers.0")
    if lean:
        q, k, v = (getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj"))
        for one, following in itertools.pairwise((q, k, v)):
            assert one.data_ptr() + one.nbytes == following.data_ptr()
