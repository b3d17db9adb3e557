"""Every family's gradients are autograd's on transformers' eager model with merged weights, solo and mixed."""

import pytest
import torch

from mint_contracts.errors import UnknownTargetModules
from mint_contracts.training import Loss
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.families import FAMILIES, ROUTED
from tests.engine.training.frontier import Merged, examples_of, reference, trainer_of
from tests.engine.training.scene import OPTIMIZER, awaken, learn

SUMS = Loss(type="importance_sampling", ratio_low=0.0, ratio_high=0.0)
RANKS = (4, 8, 1)
SPARSE = ("deepseek_v32", "glm_5")


def make_policies(trainer: Trainer) -> list[str]:
    """Three of other ranks on every linear, low-rank projections, shared and routed experts included; the last one
    on a few."""
    names = [f"p/{number}" for number in range(len(RANKS))]
    for number, (name, rank) in enumerate(zip(names, RANKS, strict=True)):
        trainer.create(name, PolicySettings(rank, 2.0 * rank, ("down_proj", "o_proj") if number == 2 else (), number))
        awaken(trainer, name, seed=number)
    return names


def batches(names: list[str], turn: int = 0) -> list[PolicyBatch]:
    return [PolicyBatch(name, examples_of(int(name[-1]), turn), SUMS) for name in names]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_mixed_batch(family: str) -> None:
    trainer = trainer_of(family)
    names = make_policies(trainer)
    found = learn(trainer, batches(names))
    for name in names:
        policy, examples = trainer.policy(name), examples_of(int(name[-1]))
        expected, logprobs = reference(Merged(trainer, name, family), examples)
        assert policy.gradient is not None
        assert float((policy.gradient - expected).norm() / expected.norm()) < 1e-4
        for ours, theirs, example in zip(found[name].logprobs, logprobs, examples, strict=True):
            wanted = torch.tensor(example.weights) != 0
            torch.testing.assert_close(torch.from_numpy(ours)[wanted], theirs[wanted], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*ROUTED, "gemma2"])
def test_alone_as_beside_others(family: str, dtype: torch.dtype) -> None:
    """Two steps, bit for bit, though the others change how many tokens each expert has."""
    together = trainer_of(family, dtype)
    names = make_policies(together)
    for turn in range(2):
        learn(together, batches(names, turn))
        together.step(dict.fromkeys(names, OPTIMIZER))
    for name in names:
        alone = trainer_of(family, dtype)
        make_policies(alone)
        for turn in range(2):
            learn(alone, batches([name], turn))
            alone.step({name: OPTIMIZER})
        assert torch.equal(alone.policy(name).weights, together.policy(name).weights)


@pytest.mark.parametrize("family", SPARSE)
def test_an_indexer_is_not_trained(family: str) -> None:
    """What it chooses has no gradient: policies leave it out, and naming it is refused."""
    trainer = trainer_of(family)
    trainer.create("p/0", PolicySettings(2))
    assert not [place.path for place in trainer.policy("p/0").form.layout.places if ".indexer." in place.path]
    with pytest.raises(UnknownTargetModules, match="wq_b"):
        trainer.create("p/1", PolicySettings(2, target_modules=("wq_b",)))
