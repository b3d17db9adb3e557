"""How Trainer calls are turned into training batches."""

from typing import get_args

import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.training import LossType
from mint_engine.policies.calls.primitives import batch_of_request
from tests.engine.training.calling import lesson
from tests.engine.training.scene import learn, trainer_with


@pytest.mark.parametrize("loss", get_args(LossType))
def test_examples_that_weigh_nothing_teach_nothing_by_any_loss(loss: str) -> None:
    """A batch cut to a fixed size may hold nothing but padding; for dr_grpo it has no longest completion."""
    trainer = trainer_with(1)
    nothing = [0.0, 0.0]
    padding = pb.Example(tokens=[5, 6], targets=[6, 7], weights=nothing, sampler_logprobs=nothing, advantages=nothing)
    batch = batch_of_request(lesson("p/0", 1, examples=[padding], loss=loss), None)
    outcome = learn(trainer, [batch])["p/0"]
    gradient = trainer.policy("p/0").gradient
    assert (outcome.loss_sum, outcome.tokens) == (0, 0)
    assert gradient is None or not gradient.any()
