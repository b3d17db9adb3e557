"""Sliding windows longer and shorter than the examples: gradients equal transformers' own."""

import random
from dataclasses import replace

import pytest
import torch

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Loss
from mint_engine.model.modules import find_modules
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.families import VOCABULARY, make_model
from tests.engine.sliding_families import SLIDING, WINDOW
from tests.engine.training.at_once import create
from tests.engine.training.frontier_families import Merged, base_over, reference
from tests.engine.training.scene import awaken, learn

PLAIN = Loss(type="importance_sampling", ratio_low=0.0, ratio_high=0.0)


def trainer_of(family: str, context: int) -> Trainer:
    """Return a trainer for examples of up to `context` tokens, with a policy on all of the base's linear layers."""
    base = replace(base_over(make_model(SLIDING[family])), context_length=context)
    trainer = Trainer(base, find_modules(base.model), max_rank=16)
    create(trainer, "p", PolicySettings(rank=4))
    awaken(trainer, "p")
    return trainer


def examples(longest: int) -> list[Example]:
    """Return three completions of one prompt, the last of which fills the context."""
    draw = random.Random(3)
    prompt, found = [draw.randrange(VOCABULARY) for _ in range(longest - 12)], []
    for count in (3, 9, 13):
        tokens = [draw.randrange(VOCABULARY) for _ in range(count)]
        found.append(completion(prompt, tokens, [draw.uniform(-6, -3) for _ in tokens], draw.uniform(-1.5, 1.5)))
    return found


@pytest.mark.parametrize("context", [WINDOW, WINDOW + 1, WINDOW + 40])
@pytest.mark.parametrize("family", SLIDING)
def test_gradients_are_transformers_own(family: str, context: int) -> None:
    trainer, given = trainer_of(family, context), examples(context)
    assert max(len(each.tokens) for each in given) == context
    assert trainer.compute.startswith("lean")
    expected, logprobs = reference(Merged(trainer, "p", make_model(SLIDING[family])), given)
    outcome = learn(trainer, [PolicyBatch("p", given, PLAIN)])["p"]
    gradient = trainer.policy("p").gradient
    assert gradient is not None
    assert expected.norm() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    for example, found, wanted in zip(given, outcome.logprobs, logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted * torch.tensor(example.weights), rtol=0, atol=2e-3)


def test_no_example_is_longer_than_the_context() -> None:
    trainer = trainer_of("mistral", WINDOW)
    with pytest.raises(InvalidRequest, match=f"has {WINDOW + 1} tokens; give at least 1, and no more than {WINDOW}"):
        trainer.begin([PolicyBatch("p", examples(WINDOW + 1), PLAIN)])
