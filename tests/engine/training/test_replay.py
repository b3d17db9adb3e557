"""Rollout routing replay: the sampler's choice of experts is kept, and updates use it instead of their own."""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, PhimoeConfig, PreTrainedModel

from mint_contracts.layer_groups import pages_for
from mint_contracts.training import Loss, Policies, Train
from mint_engine.model.cache_shape import cache_shape, make_cache
from mint_engine.model.experts import route_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.model.routes import RouteCache, RouteShape
from mint_engine.policies.rollouts import Ask
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.families import (
    CPU,
    FAMILIES,
    ROUTED,
    SIZES,
    VOCABULARY,
    fill,
    make_forward,
    make_model,
    merge,
    plain_logits,
    span,
)
from tests.engine.running import save_tokenizer
from tests.engine.training import frontier_families
from tests.engine.training.at_once import create, packed_of
from tests.engine.training.frontier_families import LEAN, SUMS
from tests.engine.training.scene import awaken, learn
from tests.engine.training.training_engine import train, training


def one_of_two() -> PreTrainedModel:
    """Return a model with two experts, each token going to one of them."""
    config = copy.deepcopy(FAMILIES["qwen3_moe"])
    config.num_experts, config.num_local_experts, config.num_experts_per_tok = 2, 2, 1
    return make_model(config)


def all_but_tie(model: Any) -> None:
    """Make both experts score almost equally in every router, so that rounding decides between them."""
    draw = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        first = layer.mlp.gate.weight[0]
        layer.mlp.gate.weight[1] = first * (1 + 1e-7 * torch.randn(first.shape, generator=draw))


def sampled(forward: Forward, tokens: list[int], prompt: int) -> tuple[torch.Tensor, Any]:
    """Return the log-probabilities of what follows the prompt, and the routes, by serving token by token."""
    pages, found = list(range(1, 1 + pages_for(len(tokens)))), []
    for start, stop in ((0, prompt), *((at, at + 1) for at in range(prompt, len(tokens) - 1))):
        part = span(forward.cache, 0, stop - start, start, pages, 1)
        found.append(forward.run(tokens[start:stop], [part], [stop - start - 1]).clone())
    logprobs = torch.cat(found).float().log_softmax(-1).gather(1, torch.tensor(tokens[prompt:])[:, None])[:, 0]
    assert forward.routes is not None
    return logprobs, forward.routes.read(pages, len(tokens) - 1)


def test_near_a_tie_only_replay_makes_trainer_and_sampler_agree() -> None:
    """If rounding decides between two experts, the sampler, token by token, and the trainer, all at once, choose
    differently. Without replay a wave's ratio band only excludes tokens that differ much."""
    base = frontier_families.base_over(one_of_two())
    modules = find_modules(base.model)
    trainer = Trainer(base, modules, max_rank=8)
    slots = Slots(modules, 2, 8, base.dtype, CPU)
    cache = make_cache(cache_shape(base.config), route_shape(base.model), 20, base.dtype, CPU)
    forward = Forward(base, slots, cache)
    all_but_tie(base.model)
    create(trainer, "p/0", PolicySettings(4))
    awaken(trainer, "p/0")
    slots.load(1, packed_of(trainer, "p/0"))
    draw = random.Random(3)
    replayed, free = [], []
    for _ in range(4):
        tokens = [draw.randrange(2, VOCABULARY) for _ in range(60)]
        logprobs, routes = sampled(forward, tokens, 20)
        told = completion(tokens[:20], tokens[20:], logprobs.tolist(), 1.0, routes)
        replayed.append(told)
        free.append(Example(told.tokens, told.targets, told.weights, told.sampler_logprobs, told.advantages))
    found = {}
    for name, examples in {"replayed": replayed, "free": free}.items():
        found[name] = learn(trainer, [PolicyBatch("p/0", examples, Train(Policies()).loss)])["p/0"].metrics
        trainer.policy("p/0").forget_gradient()
    assert found["replayed"]["drift"] < 1e-4
    assert found["free"]["drift"] > 0.05
    assert found["replayed"]["kept"] == 1
    assert found["free"]["kept"] < 0.99


def test_where_a_router_can_not_be_told_a_line_says_so_and_its_own_choice_stands() -> None:
    """Phi-MoE's router takes its largest scores one by one and calls no top-k that could be overridden."""
    config = PhimoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    base = frontier_families.base_over(make_model(config))
    modules = find_modules(base.model)
    assert not [path for path in modules if path.endswith("router")]  # a linear by class, but not by its output
    trainer = Trainer(base, modules, max_rank=8)
    create(trainer, "p/0", PolicySettings(4))
    free = frontier_families.examples_of(0)
    draw = np.random.default_rng(2)
    told = [replace(each, routes=draw.integers(0, 4, (len(each.tokens), 3, 2))) for each in free]
    said, logprobs = [], []
    with capture_logs() as lines:
        for examples in (free, told, told):
            logprobs.append(learn(trainer, [PolicyBatch("p/0", examples)])["p/0"].logprobs)
            said.append([line["block"] for line in lines if line["event"] == "routes_not_replayed"])
            trainer.policy("p/0").forget_gradient()
    assert said == [[], ["PhimoeSparseMoeBlock"], ["PhimoeSparseMoeBlock"]]  # logged once
    assert all(map(np.array_equal, logprobs[1], logprobs[0]))


ROUTERS = ("mlp.gate", "mlp.router", "block_sparse_moe.router")


def weights_of(family: str, router: Any, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen experts' weights by each family's formula, written out."""
    weight = router.wg.weight if family == "hunyuan_moe" else router.weight
    scores: torch.Tensor = hidden @ weight.float().t()
    if family in ("gpt_oss", "granitemoe"):
        biased: torch.Tensor = scores + getattr(router, "bias", 0.0)
        return biased.gather(1, chosen).softmax(-1)
    if family in ("qwen3_moe", "ernie4_5_moe", "hunyuan_moe"):
        taken = scores.softmax(-1).gather(1, chosen)
        return taken / taken.sum(-1, keepdim=True)
    taken = scores.sigmoid().gather(1, chosen)
    return taken / taken.sum(-1, keepdim=True) * float(getattr(router, "routed_scaling_factor", 1.0))


GSPO = Loss(importance_sampling_level="sequence", ratio_low=0.0, ratio_high=0.0)  # clips nothing before a step


@pytest.mark.parametrize(
    ("family", "lean", "loss"),
    [*((family, False, SUMS) for family in ROUTED), (*LEAN, SUMS), ("qwen3_moe", False, GSPO), (*LEAN, GSPO)],
)
def test_gradients_with_any_routes(family: str, lean: bool, loss: Loss) -> None:
    """Gradients equal autograd's with routers forced to the choice; expert weights still come from the router."""
    trainer = frontier_families.trainer_of(family, lean=lean)
    create(trainer, "p/0", PolicySettings(4))
    awaken(trainer, "p/0")
    merged = frontier_families.Merged(trainer, "p/0", make_model(FAMILIES[family]))
    routers = [module for path, module in merged.model.named_modules() if path.endswith(ROUTERS)]
    draw = np.random.default_rng(2)
    examples: list[Example] = []
    for told in frontier_families.examples_of(0):
        count, each = len(told.tokens), routers[0].top_k
        routes = draw.random((count, len(routers), routers[0].num_experts)).argsort(-1)[..., :each]
        prompt = next(at for at, weight in enumerate(told.weights) if weight) + 1
        if shares(examples, told, prompt):
            routes[:prompt] = np.asarray(examples[-1].routes)[:prompt]
        examples.append(completion(
            told.tokens[:prompt], told.targets[prompt - 1 :], told.sampler_logprobs[prompt - 1 :],
            told.advantages[-1], routes.astype(np.uint8),
        ))  # fmt: skip

    def force(example: Example) -> None:
        for layer, router in enumerate(routers):
            chosen = torch.from_numpy(np.asarray(example.routes)[:, layer].astype(np.int64))

            def forced(hidden: torch.Tensor, *_: Any, router: Any = router, chosen: torch.Tensor = chosen) -> Any:
                return None, weights_of(family, router, hidden.reshape(-1, hidden.shape[-1]), chosen), chosen

            router.forward = forced

    found = learn(trainer, [PolicyBatch("p/0", examples, loss)])["p/0"]
    expected, logprobs = frontier_families.reference(merged, examples, force, by_sequence=loss.by_sequence)
    gradient = trainer.policy("p/0").gradient
    assert gradient is not None
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4
    for ours, theirs, example in zip(found.logprobs, logprobs, examples, strict=True):
        wanted = torch.tensor(example.weights) != 0
        torch.testing.assert_close(torch.from_numpy(ours)[wanted], theirs[wanted], rtol=0, atol=1e-3)


def shares(examples: list[Example], told: Example, prompt: int) -> bool:
    """Return whether the previous example has the same prompt, which is then computed once."""
    return bool(examples) and list(examples[-1].tokens[:prompt]) == list(told.tokens[:prompt])


# More experts than a byte can number, as Kimi-K2 has.
MANY = copy.deepcopy(FAMILIES["kimi_k2"])
MANY.n_routed_experts, MANY.moe_intermediate_size = 300, 8
SERVED = {family: FAMILIES[family] for family in ROUTED} | {"300 experts": MANY}


@pytest.mark.parametrize(("family", "lean"), [*((family, False) for family in SERVED), LEAN])
def test_a_rollouts_routes_are_those_that_transformers_routers_choose(family: str, lean: bool) -> None:
    """Checked for a prompt and for single tokens, with an adapter that changes the routes. Dense layers have none."""
    forward = make_forward(SERVED[family], lean=lean, routes=True)
    assert forward.compute.startswith("lean") is lean
    fill(forward.slots, 1, 4)
    draw = random.Random(7)
    tokens = [draw.randrange(2, VOCABULARY) for _ in range(26)]
    _, found = sampled(forward, tokens, 20)
    model = merge(make_model(SERVED[family]), forward.slots, 1)
    bare = chosen_by(make_model(SERVED[family]), tokens[:-1])
    expected = chosen_by(model, tokens[:-1])
    assert np.array_equal(np.sort(found, -1), expected)
    assert (expected != bare).any()
    assert (expected.max() >= 256) == (family == "300 experts")


def chosen_by(model: PreTrainedModel, tokens: list[int]) -> Any:
    """Return the choices of transformers' own routers, sorted: [T, M, k]."""
    chosen: list[torch.Tensor] = []
    for path, module in model.named_modules():
        if path.endswith(ROUTERS):
            module.register_forward_hook(lambda _, __, told: chosen.append(told[-1]))
    plain_logits(model, tokens)
    return torch.stack(chosen, 1).sort(-1).values.numpy()


@pytest.mark.parametrize(("experts", "bytes_each"), [(256, 1), (384, 2)])
def test_routes_lie_with_the_pages(experts: int, bytes_each: int) -> None:
    """A sequence's routes are read from its own pages, in their order; one byte numbers 256 experts."""
    shape = RouteShape(layers=3, each=2, experts=experts)
    cache = RouteCache(shape, pages=4, device=CPU)
    assert cache.pool.nbytes == 5 * 16 * shape.token_bytes
    assert cache.pool.element_size() == bytes_each
    routes = torch.randint(experts, (3, 20, 2), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([(4, 2)[at // 16] * 16 + at % 16 for at in range(20)])
    cache.write(places, list(routes))
    assert np.array_equal(cache.read([4, 2, 1], 20), routes.transpose(0, 1).numpy())


async def test_a_wave_learns_from_the_routes_of_its_rollouts(tmp_path: Path) -> None:
    """On a complete engine, rollouts that share a prefix each have the routes that transformers' routers choose."""
    config = copy.deepcopy(FAMILIES["qwen3_moe"])
    config.vocab_size = save_tokenizer(tmp_path / "base")
    make_model(config).save_pretrained(tmp_path / "base")
    async with training(tmp_path / "base", tmp_path, train(steps=2)) as scene:
        prompt = tuple(range(40, 77))
        ask = Ask(
            "", "", NO_SLOT, prompt, Sampling(5, 0, temperature=1.0, logprobs=0, ignore_eos=True), (1, 2, 3), True
        )
        for rollout in await scene.context.rollouts.group(ask):
            assert rollout.routes is not None
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
            tokens = torch.tensor([[*prompt, *rollout.tokens[:-1]]])
            with torch.no_grad():
                scores = model(input_ids=tokens, output_router_logits=True, use_cache=False).router_logits
            expected = torch.stack([each.topk(2, dim=-1).indices for each in scores], dim=1)
            assert np.array_equal(np.sort(rollout.routes, -1), expected.sort(-1).values.numpy())
        (unasked,) = await scene.context.rollouts.group(msgspec.structs.replace(ask, seeds=(1,), routes=False))
        assert unasked.routes is None
        await scene.complete("acme/one")
