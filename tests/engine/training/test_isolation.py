"""A policy's numbers are bit-identical whoever trains beside it, and nothing of one policy reaches another."""

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from msgspec.structs import replace

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import ImportanceSamplingLevel, Loss, LossType
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.pieces import plan_pieces
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import create, step_all
from tests.engine.training.scene import OPTIMIZER, groups, learn, trainer_of, trainer_with

KINDS = [
    pytest.param((dtype, lean), id=f"{dtype}, {'lean' if lean else 'generic'}")
    for dtype in (torch.float32, torch.bfloat16)
    for lean in (True, False)
]
Kind = tuple[torch.dtype, bool]
LOSSES: tuple[LossType, ...] = (
    "dapo",
    "grpo",
    "cispo",
    "ppo",
    "dr_grpo",
    "importance_sampling",
    "bnpo",
    "cross_entropy",
)
STEPS = 2


def batch_of(number: int, turn: int, examples: Sequence[Example] | None = None) -> PolicyBatch:
    """Return a batch for a policy. Losses vary by policy, and every second one has a KL to the base."""
    level: ImportanceSamplingLevel = "sequence" if number in {1, 2} else "token"
    loss = Loss(type=LOSSES[number % len(LOSSES)], importance_sampling_level=level, kl_coefficient=0.1 * (number % 2))
    return PolicyBatch(f"p/{number}", examples or groups(100 * turn + number), loss, completion_tokens=15)


def train(trainer: Trainer, numbers: Sequence[int], broken: Sequence[int] = (), prompts: int = 2) -> None:
    """Train these policies together for STEPS steps; the broken ones get NaN advantages."""
    for turn in range(STEPS):
        batches = [batch_of(number, turn, groups(100 * turn + number, prompts)) for number in numbers]
        for number in broken:
            spoiled = [Example(e.tokens, e.targets, e.weights, e.sampler_logprobs, [float("nan")] * len(e.tokens))
                       for e in groups(100 * turn + number)]  # fmt: skip
            batches.append(batch_of(number, turn, spoiled))
        learn(trainer, batches)
        step_all(trainer, {batch.policy: OPTIMIZER for batch in batches})


def alone(number: int, kind: Kind, prompts: int = 2) -> torch.Tensor:
    """Return a policy's state after training alone."""
    trainer = trainer_with(8, dtype=kind[0], lean=kind[1])
    train(trainer, [number], prompts=prompts)
    return everything(trainer, number)


def everything(trainer: Trainer, number: int) -> torch.Tensor:
    policy = trainer.policy(f"p/{number}")
    return torch.stack([policy.weights, policy.exp_avg, policy.exp_avg_sq])


@pytest.mark.parametrize("kind", KINDS)
def test_beside_seven_others(kind: Kind) -> None:
    trainer = trainer_with(8, dtype=kind[0], lean=kind[1])
    train(trainer, range(8))
    for number in range(8):
        assert torch.equal(everything(trainer, number), alone(number, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_beside_others_that_shift_its_pieces_into_other_microbatches(kind: Kind) -> None:
    prompts = 40  # enough to cut each policy's batch into several pieces
    assert all(len(list(plan_pieces(batch_of(number, 0, groups(number, prompts))))) > 1 for number in range(2))
    trainer = trainer_with(8, dtype=kind[0], lean=kind[1])
    train(trainer, range(2), prompts=prompts)
    assert torch.equal(everything(trainer, 1), alone(1, kind, prompts))


@pytest.mark.parametrize("kind", KINDS)
def test_beside_one_that_is_broken(kind: Kind) -> None:
    """One neighbour has NaN advantages, another NaN weights, before and after the healthy policies in the batch."""
    trainer = trainer_with(8, dtype=kind[0], lean=kind[1])
    trainer.policy("p/2").weights.fill_(torch.nan)
    train(trainer, [2, 4, 5], broken=[0])
    for number in (4, 5):
        assert torch.equal(everything(trainer, number), alone(number, kind))


@pytest.mark.parametrize("number", [0, 2])
def test_non_finite_updates_are_dropped(number: int) -> None:
    """The step is reported as skipped; the policy is unchanged and continues with the next step."""
    trainer = trainer_with(3)
    before = everything(trainer, number).clone()
    spoiled = [Example(e.tokens, e.targets, e.weights, [-torch.inf] * len(e.tokens), [torch.nan] * len(e.tokens))
               for e in groups(1)]  # fmt: skip
    found = learn(trainer, [PolicyBatch(f"p/{number}", spoiled)])[f"p/{number}"]
    assert not found.finite
    outcome = step_all(trainer, {f"p/{number}": OPTIMIZER})[f"p/{number}"]
    assert outcome.skipped
    assert outcome.step == 0
    assert torch.equal(everything(trainer, number), before)
    learn(trainer, [PolicyBatch(f"p/{number}", groups(2))])
    assert not step_all(trainer, {f"p/{number}": OPTIMIZER})[f"p/{number}"].skipped
    assert not torch.equal(everything(trainer, number), before)


def test_a_form_is_freed_with_its_last_policy() -> None:
    trainer = trainer_of()
    for name in ("one", "two"):
        create(trainer, name, PolicySettings(rank=3))
    form = weakref.ref(trainer.policy("one").form)
    assert trainer.policy("two").form is form()
    trainer.drop("one")
    assert form() is not None
    trainer.drop("two")
    gc.collect()
    assert form() is None


def test_a_step_that_is_refused_changes_nothing() -> None:
    """The learning rate fits into float32, but overflows once the first moment's bias is corrected."""
    trainers = trainer_with(2), trainer_with(2)
    for trainer in trainers:
        learn(trainer, [batch_of(0, 0), batch_of(1, 0)])
    refusing, other = trainers
    with pytest.raises(
        InvalidRequest, match="would take a step by 1e\\+39 with its learning rate of 1e\\+38; lower it"
    ):
        refusing.begin_step("p/0", replace(OPTIMIZER, learning_rate=1e38))
    for trainer in trainers:
        step_all(trainer, {"p/0": OPTIMIZER, "p/1": OPTIMIZER})
    for number in (0, 1):
        assert torch.equal(everything(refusing, number), everything(other, number))
        assert refusing.policy(f"p/{number}").step == 1


def test_one_broken_part_spoils_the_whole_step() -> None:
    """A gradient accumulated over several works is dropped if any of them was not finite."""
    trainer = trainer_with(1)
    before = everything(trainer, 0).clone()
    spoiled = [Example(e.tokens, e.targets, e.weights, e.sampler_logprobs, [torch.nan] * len(e.tokens))
               for e in groups(1)]  # fmt: skip
    learn(trainer, [PolicyBatch("p/0", spoiled)])
    learn(trainer, [PolicyBatch("p/0", groups(2))])
    assert step_all(trainer, {"p/0": OPTIMIZER})["p/0"].skipped
    assert torch.equal(everything(trainer, 0), before)
