"""Every family's gradients equal autograd's on transformers' eager model with merged weights, alone and mixed.

All are tested with the generic pass; families with routed experts also with the lean pass, if they have one.
"""

import copy
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from mint_contracts.errors import UnknownTargetModules
from mint_engine.adapters.check import Fit
from mint_engine.adapters.fused import unstack
from mint_engine.adapters.packed import halves
from mint_engine.adapters.read import read_adapter
from mint_engine.model.modules import find_modules
from mint_engine.sources.local import LocalFolder
from mint_engine.training import indexed
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.expert_adapters import BOTH, save
from tests.engine.families import FAMILIES, NONE_SHARED, ROUTED, SEEING, make_model
from tests.engine.saved_families import BASES
from tests.engine.training.at_once import create, packed_of, step_all
from tests.engine.training.frontier_families import LEAN, SUMS, Merged, base_over, examples_of, reference, trainer_of
from tests.engine.training.scene import OPTIMIZER, awaken, learn

RANKS = (4, 8, 1)
SPARSE = ("deepseek_v32", "glm_5")


def make_policies(trainer: Trainer) -> list[str]:
    """Create three policies of different ranks. The first two target every linear layer, including low-rank
    projections and shared and routed experts; the last targets a few."""
    names = [f"p/{number}" for number in range(len(RANKS))]
    for number, (name, rank) in enumerate(zip(names, RANKS, strict=True)):
        targets = ("down_proj", "o_proj") if number == 2 else ()
        create(trainer, name, PolicySettings(rank, 2.0 * rank, targets, number))
        awaken(trainer, name, seed=number)
    return names


def batches(names: list[str], turn: int = 0) -> list[PolicyBatch]:
    return [PolicyBatch(name, examples_of(int(name[-1]), turn), SUMS) for name in names]


@pytest.mark.parametrize(("family", "lean"), [*((family, False) for family in (*FAMILIES, *SEEING)), LEAN])
def test_gradients_of_a_mixed_batch(family: str, lean: bool) -> None:
    check_gradients(trainer_of(family, lean=lean), BASES[family])


def test_gradients_where_a_router_holds_a_linear_and_attentions_output_is_viewed() -> None:
    """In AFMoE, whose router is left alone like any other."""
    base = base_over(make_model(BASES["afmoe"]))
    modules = find_modules(base.model)
    assert not [path for path in modules if ".router." in path]
    check_gradients(Trainer(base, modules, max_rank=16, lean=False), BASES["afmoe"])


def test_gradients_where_shared_experts_have_no_columns() -> None:
    base = base_over(make_model(NONE_SHARED))
    check_gradients(Trainer(base, find_modules(base.model), max_rank=16, lean=False), NONE_SHARED)


def check_gradients(trainer: Trainer, config: PreTrainedConfig) -> None:
    names = make_policies(trainer)
    found = learn(trainer, batches(names))
    for name in names:
        policy, examples = trainer.policy(name), examples_of(int(name[-1]))
        expected, logprobs = reference(Merged(trainer, name, make_model(config)), examples)
        assert policy.gradient is not None
        assert float((policy.gradient - expected).norm() / expected.norm()) < 1e-4
        for ours, theirs, example in zip(found[name].logprobs, logprobs, examples, strict=True):
            wanted = torch.tensor(example.weights) != 0
            torch.testing.assert_close(torch.from_numpy(ours)[wanted], theirs[wanted], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("family", "lean"), [LEAN, ("qwen3_moe", False), ("gpt_oss", False)])
def test_experts_that_had_no_tensors_stay_as_they_are(family: str, lean: bool) -> None:
    """If A and B are both zero, neither has a gradient; the other experts learn."""
    trainer = trainer_of(family, lean=lean)
    create(trainer, "all", PolicySettings(4))
    awaken(trainer, "all")
    packed = packed_of(trainer, "all")
    for place, a, b in halves(packed.header.layout, packed.run):
        if place.experts:
            a[1::2] = b[1::2] = 0
    create(trainer, "some", PolicySettings(), packed)
    policy = trainer.policy("some")
    for turn in range(2):
        learn(trainer, [PolicyBatch("some", examples_of(0, turn), SUMS)])
        step_all(trainer, {"some": OPTIMIZER})
    before = halves(packed.header.layout, packed.run)
    for (place, a, b), (_, *begun) in zip(halves(policy.form.layout, policy.weights), before, strict=True):
        if place.experts:
            for now, then in zip((a, b), begun, strict=True):
                assert not now[1::2].any()
                assert not torch.equal(now[::2], then[::2])


@pytest.mark.parametrize(
    ("family", "lean", "dtype"),
    [
        *((family, False, torch.float32) for family in (*ROUTED, "gemma2")),
        # One of each kind of attention and experts; the others differ only in what does not depend on the dtype.
        *((family, False, torch.bfloat16) for family in ("qwen3_moe", "gpt_oss", "deepseek_v32", "gemma2")),
        (*LEAN, torch.float32),
        (*LEAN, torch.bfloat16),
    ],
    ids=str,
)
def test_alone_as_beside_others(family: str, lean: bool, dtype: torch.dtype) -> None:
    """Two steps are bit-identical, although the neighbours change how many tokens each expert gets."""
    together = trainer_of(family, dtype, lean=lean)
    names = make_policies(together)
    for turn in range(2):
        learn(together, batches(names, turn))
        step_all(together, dict.fromkeys(names, OPTIMIZER))
    for name in names:
        alone = trainer_of(family, dtype, lean=lean)
        make_policies(alone)
        for turn in range(2):
            learn(alone, batches([name], turn))
            step_all(alone, {name: OPTIMIZER})
        assert torch.equal(alone.policy(name).weights, together.policy(name).weights)


def test_pieces_of_work_are_single_layers() -> None:
    """No tenant's token waits for more than one piece. Pieces are, per policy: rounding its weights, zeroing its
    gradient, laying it out; per layer: its forward pass; per policy's chunk of the head: its logits, their gradient,
    and the results; and backward per layer: recomputing it, then its gradient."""
    trainer = trainer_of("qwen3_moe")
    names = make_policies(trainer)
    work, pieces = trainer.begin(batches(names)), 0
    while work.advance():
        pieces += 1
    layers = FAMILIES["qwen3_moe"].num_hidden_layers
    assert pieces == 3 * len(names) + layers + 3 * len(names) + 2 * layers


@pytest.mark.parametrize("family", SPARSE)
def test_an_indexer_is_not_trained(family: str) -> None:
    """Its choice has no gradient: policies leave the indexer out, and targeting it explicitly is refused."""
    trainer = trainer_of(family)
    create(trainer, "p/0", PolicySettings(2))
    assert not [place.path for place in trainer.policy("p/0").form.layout.places if ".indexer." in place.path]
    with pytest.raises(UnknownTargetModules, match="wq_b"):
        create(trainer, "p/1", PolicySettings(2, target_modules=("wq_b",)))


def test_no_choice_is_kept_that_no_later_layer_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM-5's layers each choose for themselves: at 32,768 tokens, choices would take 83 GB."""
    select, made, most = indexed.select, list[weakref.ref[torch.Tensor]](), 0

    def noted(*arguments: Any, **named: Any) -> Any:
        chosen = select(*arguments, **named)
        made.extend(weakref.ref(each) for each in chosen if each is not None)
        return chosen

    monkeypatch.setattr(indexed, "select", noted)
    config = copy.deepcopy(FAMILIES["glm_5"])
    config.indexer_types = ["full"] * config.num_hidden_layers
    base = base_over(make_model(config))
    trainer = Trainer(base, find_modules(base.model), max_rank=16, lean=False)
    create(trainer, "p/0", PolicySettings(2))
    work = trainer.begin([PolicyBatch("p/0", examples_of(0)[:1], SUMS)])
    while work.advance():
        most = max(most, sum(each() is not None for each in made))
    assert len(made) == 2 * config.num_hidden_layers
    assert most == 2, "the last one in each direction"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_start_from_pefts_stacked_parameters(family: str, tmp_path: Path) -> None:
    """PEFT shares A between gate and up; here each has its own copy. The gradients of B equal PEFT's; those of the
    two copies of A add up to PEFT's."""
    peft = save(tmp_path, family, target_parameters=BOTH)
    trainer = trainer_of(family)
    modules = find_modules(make_model(FAMILIES[family]))
    packed = read_adapter(LocalFolder(tmp_path, "start"), Fit(modules, 8), torch.float32)
    create(trainer, "p/0", PolicySettings(), packed)
    examples = examples_of(0)
    learn(trainer, [PolicyBatch("p/0", examples, SUMS)])
    policy = trainer.policy("p/0")
    assert policy.gradient is not None
    naive_sum(peft, examples).backward()  # type: ignore[no-untyped-call]
    theirs = {path: each.grad for path, each in peft.named_parameters() if each.grad is not None}
    ours = {place.path: (a, b) for place, a, b in halves(policy.form.layout, policy.gradient)}
    for layer in range(3):
        experts = f"model.layers.{layer}.mlp.experts"
        for names, depth in ((("gate_proj", "up_proj"), ".base_layer"), (("down_proj",), "")):
            a, b = (theirs[f"base_model.model.{experts}{depth}.lora_{half}.default.weight"] for half in "AB")
            parts = [ours[f"{experts}.{name}"] for name in names]
            for name, (_, found) in zip(names, parts, strict=True):
                expected = unstack(a, b, modules[f"{experts}.{name}"])[1]
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
            whole = a.view(parts[0][0].shape)
            torch.testing.assert_close(
                sum(part for part, _ in parts), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())
            )


def naive_sum(model: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """Return the plain importance-sampling loss, computed with PEFT's model."""
    total = torch.zeros(())
    for example in examples:
        logits = model(input_ids=torch.tensor([list(example.tokens)]), use_cache=False).logits[0].float()
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(list(example.targets))[:, None])[:, 0]
        ratio = (logprobs - torch.tensor(example.sampler_logprobs)).exp()
        total = total - (ratio * torch.tensor(example.advantages) * torch.tensor(example.weights)).sum()
    return total
