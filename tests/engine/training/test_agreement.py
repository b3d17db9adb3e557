"""The trainer computes the same log-probability for a token as the sampler that drew it, up to its dtype's rounding.

In float32 they agree to a few units in the last place. In bfloat16 sampler and trainer round sums at different
places, each to 8 bits: over these models' two or three layers, whose log-probabilities spread over about 5 nats,
that explains differences of 0.04 on average and 0.25 at most.

For bases with routed experts, this holds for updates that replay the rollout's routes. Without replay, rounding near
a router's tie can send a token to different experts: a few tokens in a hundred differed by up to 0.4 (Qwen3-MoE), 0.6
(gpt-oss), 2.0 (DeepSeek-V3) and 0.3 (Kimi-K2); with replayed routes none differed by more than 0.15. The choices of
a sparse attention's indexer are not replayed and have ties of their own: replaying routes reduced the largest
difference only from 2.8 to 1.9 (DeepSeek-V3.2) and from 1.6 to 0.5 (GLM-5).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig, Qwen3Config

from mint_contracts.layer_groups import pages_for
from mint_engine.kernels.library import find_kernels
from mint_engine.model.base import Base
from mint_engine.model.cache_shape import cache_shape, make_cache
from mint_engine.model.experts import route_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.residency.slots import Slots
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.trainer import Trainer
from tests.engine.families import ROUTED, make_model, span
from tests.engine.quantised_experts import SAVES, load
from tests.engine.saved_families import BASES
from tests.engine.training.at_once import packed_of, step_all
from tests.engine.training.frontier_families import base_of as family_of
from tests.engine.training.frontier_families import base_over
from tests.engine.training.scene import CPU, LLAMA, OPTIMIZER, SIZES, base_of, groups, learn, policies

MEAN = {torch.float32: 1e-5, torch.bfloat16: 0.04}
MOST = {torch.float32: 1e-4, torch.bfloat16: 0.25}
SPARSE = ("deepseek_v32", "glm_5")
OTHERS = tuple(name for name in ROUTED if name not in SPARSE)
FEW = 0.2  # fraction of tokens


def sample(forward: Forward, example: Example) -> tuple[torch.Tensor, Example]:
    """Score an example with the serving pass from slot 1: the prompt as one chunk, then by token, as in rollouts.

    Returns the targets' log-probabilities, and the example with the expert routes of its tokens, if the base has any.
    """
    prompt, found = next(at for at, weight in enumerate(example.weights) if weight) + 1, []
    pages = list(range(1, 1 + pages_for(len(example.tokens))))
    for start, stop in ((0, prompt), *((at, at + 1) for at in range(prompt, len(example.tokens)))):
        part = span(forward.cache, 0, stop - start, start, pages[: pages_for(stop)], slot=1)
        found.append(
            forward.run(list(example.tokens[start:stop]), [part], [stop - start - 1]).to(torch.float32, copy=True)
        )
    targets = torch.tensor(list(example.targets[prompt - 1 :]))
    routes = forward.routes.read(pages, len(example.tokens)) if forward.routes is not None else None
    return torch.cat(found).log_softmax(-1).gather(1, targets[:, None])[:, 0], replace(example, routes=routes)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
@pytest.mark.parametrize("dtype", MEAN)
@pytest.mark.parametrize("config", [LLAMA, Qwen3Config(**SIZES)], ids=["llama", "qwen3"])
def test_trainer_and_sampler_agree(config: PreTrainedConfig, dtype: torch.dtype, lean: bool) -> None:
    """They also agree after a step: the published revision holds the weights that the trainer continues from."""
    check(base_of(config, dtype), lean)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in (*OTHERS, "mixtral", "gemma2", "gemma3")),
        # One of each kind of attention and experts; float32 checks what is special to the others more strictly.
        *((name, torch.bfloat16) for name in ("qwen3_moe", "gpt_oss", "deepseek_v3", "gemma2")),
    ],
)
def test_trainer_and_sampler_of_other_families_agree(name: str, dtype: torch.dtype) -> None:
    """Routes are replayed; both sides run transformers' modules, as these families are served and trained."""
    check(family_of(name, dtype), lean=False)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
@pytest.mark.parametrize("name", SPARSE)
def test_trainer_and_sampler_of_sparse_attention_agree(name: str, lean: bool) -> None:
    check(family_of(name, torch.float32), lean=lean)


@pytest.mark.parametrize("name", SPARSE)
def test_in_bfloat16_they_differ_by_more_only_where_an_indexer_chooses(name: str) -> None:
    """Only few tokens differ, where rounding changes the indexer's choice; none if top-k covers the context."""
    config = copy.deepcopy(BASES[name])
    config.index_topk = 64
    check(base_over(make_model(config, torch.bfloat16)), lean=False)
    for found in differences(family_of(name, torch.bfloat16), lean=False, trained_lean=False):
        assert float(found.median()) < MEAN[torch.bfloat16]
        assert float((found > MOST[torch.bfloat16]).float().mean()) < FEW


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize("dtype", MEAN)
def test_trainer_and_sampler_agree_by_own_kernels_over_experts(dtype: torch.dtype, name: str) -> None:
    check(family_of(name, dtype), lean=True)


def test_trainer_and_sampler_agree_over_experts_that_stay_quantised(tmp_path: Path) -> None:
    """Serving uses our kernels, which dequantise a few rows at a time; training uses transformers' modules."""
    quantised, _ = SAVES["float8 by channels"][1](tmp_path)
    check(load(quantised), lean=find_kernels(torch.bfloat16, CPU) is not None, trained_lean=False)


def check(base: Base, lean: bool, *, trained_lean: bool | None = None) -> None:
    for found in differences(base, lean, lean if trained_lean is None else trained_lean):
        assert float(found.mean()) < MEAN[base.dtype]
        assert float(found.max()) < MOST[base.dtype]


def differences(base: Base, lean: bool, trained_lean: bool) -> Iterator[torch.Tensor]:
    """Yield the absolute differences of the sampled tokens' log-probabilities, before and after a step."""
    dtype, modules, routes = base.dtype, find_modules(base.model), route_shape(base.model)
    trainer = Trainer(base, modules, max_rank=16, lean=trained_lean)
    slots = Slots(modules, 2, 16, dtype, CPU)
    forward = Forward(base, slots, make_cache(cache_shape(base.config), routes, 40, dtype, CPU), lean=lean)
    assert (trainer.compute.startswith("lean"), forward.compute.startswith("lean")) == (trained_lean, lean)
    (name,) = policies(trainer, 1)
    for turn in range(2):
        slots.load(1, packed_of(trainer, name))
        told, sampled = zip(*(sample(forward, each) for each in groups(turn, size=2, vocabulary=96)), strict=True)
        ours = learn(trainer, [PolicyBatch(name, sampled)])[name].logprobs
        yield torch.cat(
            [
                (torch.from_numpy(one)[torch.tensor(list(example.weights)) != 0] - theirs).abs()
                for one, theirs, example in zip(ours, told, sampled, strict=True)
            ]
        )
        step_all(trainer, {name: OPTIMIZER})
