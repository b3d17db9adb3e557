"""The lean training pass computes the same as the generic one, for every family it supports."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    OlmoConfig,
    PreTrainedConfig,
)

from mint_contracts.training import Loss
from mint_engine.model.modules import find_modules
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome
from tests.engine.training.lean_configs import MOE, ROUTED, TAKEN
from tests.engine.training.scene import LLAMA, SIZES, base_of, groups, learn, model_of, policies, trainer_of

MOST_TOKENS = 40  # per example

LATENTS = ("deepseek_v3", "deepseek_v3, queries at once", "deepseek_v32, all of a past", "glm4_moe_lite")
CHOOSING = ("deepseek_v32", "glm_5")


def gradients(
    trainer: Trainer, loss: Loss, prompts: int = 2, routed: int = 0
) -> tuple[Trainer, dict[str, LossOutcome]]:
    """Compute the gradients of three policies.

    Weights are always rounded to bfloat16, so that only the computations differ.
    """
    names = policies(trainer, 3)
    for name in names:
        policy = trainer.policy(name)
        policy.weights.copy_(policy.weights.to(torch.bfloat16))
    batches = [PolicyBatch(name, examples(50 + at, prompts, routed), loss) for at, name in enumerate(names)]
    return trainer, learn(trainer, batches)


def examples(seed: int, prompts: int, routed: int) -> list[Example]:
    """Return examples with random routes for `routed` expert layers, so that all passes use the same experts."""
    found, draw = groups(seed, prompts, size=4), np.random.default_rng(seed)
    if not routed:
        return found
    routes = draw.random((MOST_TOKENS, routed, MOE["num_experts"])).argsort(-1)[..., : MOE["num_experts_per_tok"]]
    return [dataclasses.replace(each, routes=routes[: len(each.tokens)].astype(np.uint8)) for each in found]


def distance(one: Trainer, other: Trainer, name: str) -> float:
    """Return the distance of two gradients relative to the second's norm."""
    ours, theirs = one.policy(name).gradient, other.policy(name).gradient
    assert ours is not None
    assert theirs is not None
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("family", TAKEN | ROUTED)
def test_lean_equals_generic(family: str) -> None:
    (lean, found), (generic, expected) = (
        gradients(trainer_of((TAKEN | ROUTED)[family], lean=lean), Loss(kl_coefficient=0.1)) for lean in (True, False)
    )
    assert lean.compute.startswith("lean")
    assert generic.compute == "generic"
    for name in lean.names:
        assert distance(lean, generic, name) < 1e-5
        for one, other in zip(found[name].logprobs, expected[name].logprobs, strict=True):
            assert abs(one - other).max() < 1e-4


@pytest.mark.parametrize("family", [family for family in TAKEN | ROUTED if family not in CHOOSING])
def test_in_bfloat16_they_differ_by_rounding_alone(family: str) -> None:
    """Both differ from the same base's float32 gradients by 2 to 5% of their norm, lean by no more than generic; from
    each other by at most what two independent errors of this size give, or a tenth more with latent attention.

    This is measured over about 250 equally weighted tokens per policy: if ratios weighed them, a few tokens would
    decide, and with clipping, rounding would decide on which side of the clip those fall.
    """
    config = (TAKEN | ROUTED)[family]
    (reference, expected), (lean, found), (generic, beside) = rounded(config, routed=family in ROUTED)
    further = 2.0 if config.model_type == "gpt_oss" else 1.0  # its modules round scores, and gates repeatedly
    for name in lean.names:
        ours, theirs = distance(lean, reference, name), distance(generic, reference, name)
        assert theirs < 0.06 * further
        assert ours < 1.1 * theirs
        apart = math.hypot(ours, theirs) * (1.1 if family in LATENTS else 1)
        assert distance(lean, generic, name) < apart
        exactly, our, their = (np.concatenate(each[name].logprobs) for each in (expected, found, beside))
        assert np.abs(our - exactly).mean() < 1.1 * np.abs(their - exactly).mean() < 0.02 * further


@pytest.mark.parametrize("family", CHOOSING)
def test_where_rounding_moves_an_indexers_choice_they_miss_as_much(family: str) -> None:
    """Replacing one of nine chosen tokens moves a gradient by more than all rounding, so only means are compared."""
    (reference, expected), (lean, found), (generic, beside) = rounded(ROUTED[family], routed=True)
    ours, theirs = (np.mean([distance(each, reference, name) for name in each.names]) for each in (lean, generic))
    assert ours < 1.1 * theirs < 0.22
    exactly, our, their = (
        np.concatenate([part for name in lean.names for part in each[name].logprobs])
        for each in (expected, found, beside)
    )
    assert np.abs(our - exactly).mean() < 1.1 * np.abs(their - exactly).mean() < 0.04


def rounded(config: PreTrainedConfig, *, routed: bool) -> list[tuple[Trainer, dict[str, LossOutcome]]]:
    """Train over a base in float32, and in bfloat16 by the lean and the generic pass; `routed` fixes the experts."""
    kinds = getattr(config, "mlp_layer_types", None)
    dense = kinds.count("dense") if kinds else getattr(config, "first_k_dense_replace", 0)
    layers = config.num_hidden_layers - dense - len(getattr(config, "mlp_only_layers", ())) if routed else 0
    alike = Loss(type="cross_entropy")
    base = base_of(config, torch.bfloat16)
    exact = dataclasses.replace(base, model=nn.Module.to(base.model, torch.float32), dtype=torch.float32)
    trainers = (
        Trainer(exact, find_modules(exact.model), max_rank=16, lean=False),
        *(trainer_of(config, torch.bfloat16, lean=lean) for lean in (True, False)),
    )
    return [gradients(trainer, alike, 8, layers) for trainer in trainers]


def test_other_families_take_the_generic_pass() -> None:
    assert trainer_of(OlmoConfig(**SIZES)).compute == "generic"


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_the_base_computes_as_before_and_is_held_once(lean: bool) -> None:
    """The trainer views the base's own weight memory, and the base's modules still give the same results."""
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
