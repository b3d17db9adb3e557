"""Learning rates follow transformers' schedules, except that no step is wasted at rate 0."""

import pytest
import torch
from transformers import get_scheduler

from mint_contracts.training import Optimizer, Schedule
from mint_engine.training.schedule import rate, with_rate

STEPS = 20


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_without_warmup_rates_are_those_of_transformers(kind: Schedule) -> None:
    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = get_scheduler(kind, adam, num_warmup_steps=0, num_training_steps=STEPS)
    for step in range(STEPS):
        assert rate(Optimizer(learning_rate=0.5, schedule=kind), step, STEPS) == pytest.approx(
            theirs.get_last_lr()[0]
        )
        adam.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warming_up_climbs_to_the_whole(kind: Schedule) -> None:
    optimizer = Optimizer(learning_rate=1.0, schedule=kind, warmup_steps=4)
    found = [rate(optimizer, step, STEPS) for step in range(STEPS)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == sorted(found[5:], reverse=True)
    assert found[-1] > 0


def test_a_wave_that_ends_before_it_is_warm_climbs_as_one_that_does_not() -> None:
    """So it continues at the same rate when it is given more steps."""
    optimizer = Optimizer(learning_rate=1.0, schedule="linear", warmup_steps=2 * STEPS)
    found = [rate(optimizer, step, STEPS) for step in range(STEPS)]
    assert found == [rate(optimizer, step, 4 * STEPS) for step in range(STEPS)]
    assert found[-1] < 0.5


def test_a_schedule_changes_only_the_learning_rate() -> None:
    optimizer = Optimizer(learning_rate=1.0, schedule="linear", weight_decay=0.3)
    found = with_rate(optimizer, 10, STEPS)
    assert found.learning_rate == 0.5
    assert found.weight_decay == 0.3
