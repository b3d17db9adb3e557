"""Losses and advantages equal TRL's, and golden values of other implementations of the same papers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from mint_contracts.training import SEQUENCE_LOSSES, ImportanceSamplingLevel, Loss, LossType, Scaling
from mint_engine.training.advantages import group_advantages, has_signal
from mint_engine.training.example import PolicyBatch, completion
from mint_engine.training.losses import TokenLosses, sequence_losses, token_losses
from mint_engine.training.pieces import normaliser, plan_pieces

LONGEST = 9  # new tokens
LENGTHS = (9, 1, 4, 7)


def trl_loss(loss: Loss, now: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute GRPOTrainer's own loss of log-probabilities [B, T], with a stub of the trainer fields that it reads.

    At level "token" the old policy is the sampler; at "sequence" TRL corrects for the sampler by a factor.
    """
    cispo = loss.type == "cispo"
    trainer = SimpleNamespace(
        loss_type=loss.type, beta=loss.kl_coefficient, epsilon_low=1 - loss.lowest,
        epsilon_high=1 + loss.clip_high if cispo else loss.clip_high,  # TRL bounds the ratio itself here
        max_completion_length=LONGEST, importance_sampling_level=loss.importance_sampling_level,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, aux_loss_enabled=False, use_vllm=loss.by_sequence,
        vllm_importance_sampling_correction=True, _entropy_bonus_enabled=False, model=SimpleNamespace(training=False),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda each: each, reduce=lambda each, reduction: each),
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
    )  # fmt: skip
    compute: Any = GRPOTrainer._compute_loss
    found = compute(trainer, None, inputs)
    assert isinstance(found, torch.Tensor)
    return found


def scene(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), LONGEST)
    sampler = -torch.rand(shape, generator=draw) * 4
    return {
        "prompt_ids": torch.ones((len(LENGTHS), 1), dtype=torch.int64),
        "prompt_mask": torch.ones((len(LENGTHS), 1), dtype=torch.int64),
        "completion_ids": torch.ones(shape, dtype=torch.int64),
        "completion_mask": (torch.arange(LONGEST)[None] < torch.tensor(LENGTHS)[:, None]).long(),
        "advantages": torch.randn(len(LENGTHS), generator=draw),
        "old_per_token_logps": sampler,
        "sampler": sampler,
        "ref_per_token_logps": sampler + torch.randn(shape, generator=draw) * 0.5,
        "num_items_in_batch": torch.tensor(float(sum(LENGTHS))),
        "now": sampler + torch.randn(shape, generator=draw) * 0.3,
    }


@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", SEQUENCE_LOSSES)
def test_value_and_gradient_are_trls(loss_type: LossType, level: ImportanceSamplingLevel, kl: float) -> None:
    loss = Loss(
        type=loss_type,
        clip_high=0.28,
        importance_sampling_level=level,
        kl_coefficient=kl,
        ratio_low=0.0,
        ratio_high=0.0,
    )
    for seed in range(5):
        inputs = scene(seed)
        now = inputs.pop("now").requires_grad_()
        if loss.by_sequence:
            disagree_with_sampler(inputs)
        theirs = trl_loss(loss, now, inputs)
        (their_gradient,) = torch.autograd.grad(theirs, now)
        ours, our_gradient = ours_of(loss, now, inputs)
        assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-5)
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss_type", SEQUENCE_LOSSES)
def test_completions_that_weigh_nothing_are_those_that_trl_masks(loss_type: LossType) -> None:
    loss, inputs = Loss(type=loss_type, kl_coefficient=0.2, ratio_low=0.0, ratio_high=0.0), scene(0)
    inputs["completion_mask"][0] = 0
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum().float()
    now = inputs.pop("now").requires_grad_()
    theirs = trl_loss(loss, now, inputs)
    ours, our_gradient = ours_of(loss, now, inputs)
    assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-5)
    torch.testing.assert_close(our_gradient, torch.autograd.grad(theirs, now)[0], rtol=1e-5, atol=1e-7)


def disagree_with_sampler(inputs: dict[str, torch.Tensor]) -> None:
    """Let the sampler's log-probabilities be others than the old policy's, with TRL's factor of each sequence."""
    draw, mask = torch.Generator().manual_seed(8), inputs["completion_mask"]
    off = torch.randn(mask.shape, generator=draw) * 0.2
    inputs["sampler"] = inputs["old_per_token_logps"] - off
    inputs["importance_sampling_ratio"] = ((off * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()


def ours_of(loss: Loss, now: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same through our examples, pieces and normaliser; the gradient in TRL's layout [B, T]."""
    sampler, mask = inputs["sampler"], inputs["completion_mask"].bool()
    batch = PolicyBatch(
        "p",
        [
            completion(
                [1],
                [1] * length,
                sampler[row, :length].tolist(),
                float(inputs["advantages"][row]),
                weight=float(mask[row].any()),
            )
            for row, length in enumerate(LENGTHS)
        ],
        loss,
        completion_tokens=LONGEST,
    )
    (piece,) = plan_pieces(batch)
    entries = piece.entries
    told = (
        loss, now[mask], torch.from_numpy(entries.sampler), torch.from_numpy(entries.advantages),
        inputs["ref_per_token_logps"][mask] if loss.kl_coefficient else None,
    )  # fmt: skip
    old, examples = inputs["old_per_token_logps"][mask], torch.from_numpy(entries.examples)
    found = sequence_losses(*told, old, examples) if loss.by_sequence else token_losses(*told)
    value = (found.loss * torch.from_numpy(entries.weights * entries.shares)).sum() / normaliser(batch)
    return value.detach(), torch.autograd.grad(value, now)[0]


def gspo(
    now: torch.Tensor,
    examples: Sequence[int],
    old: Sequence[float] | None = None,
    advantage: float = 1.0,
    **options: float,
) -> TokenLosses:
    """Losses of tokens with one advantage whose completions' ratios count, and whose sampler gave -1 to each."""
    loss, count = Loss(importance_sampling_level="sequence", **options), len(now)  # type: ignore[arg-type]
    before = torch.tensor(old) if old is not None else torch.full((count,), torch.nan)
    sampler = torch.full((count,), -1.0)
    advantages = torch.full((count,), advantage)
    return sequence_losses(loss, now, sampler, advantages, None, before, torch.tensor(examples))


def test_sums_over_tokens() -> None:
    """Tinker's losses match their formulas; they are sums, so their normaliser is zero."""
    now, sampler = torch.tensor([-1.0, -2.0, -0.5]).requires_grad_(), torch.tensor([-1.2, -1.0, -3.0])
    advantages, ratio = torch.tensor([1.0, -2.0, 0.5]), torch.exp(torch.tensor([0.2, -1.0, 2.5]))
    formulas: list[tuple[LossType, torch.Tensor]] = [
        ("cross_entropy", -now),
        ("importance_sampling", -ratio * advantages),
        ("ppo", -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)),
    ]
    for loss_type, expected in formulas:
        found = token_losses(Loss(type=loss_type, ratio_low=0.0, ratio_high=0.0), now, sampler, advantages, None)
        torch.testing.assert_close(found.loss, expected)
        assert normaliser(PolicyBatch("p", [], Loss(type=loss_type))) == 0.0


def test_a_lower_clip_that_is_told_bounds_cispo_too() -> None:
    now, sampler, advantages = torch.tensor([-3.0]), torch.tensor([-1.0]), torch.tensor([1.0])
    found = token_losses(Loss(type="cispo", clip_low=0.2, ratio_low=0.0), now, sampler, advantages, None)
    assert found.loss.item() == pytest.approx(-0.8 * -3.0)
    assert found.clipped.tolist() == [True]


def test_a_clipped_token_gives_no_gradient() -> None:
    now = torch.tensor([0.0, -2.0, 0.0, -2.0]).requires_grad_()
    found = token_losses(Loss(ratio_low=0.0), now, torch.full((4,), -1.0), torch.tensor([1.0, 1.0, -1.0, -1.0]), None)
    found.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert found.clipped.tolist() == [True, False, False, True]
    assert now.grad is not None
    assert (now.grad != 0).tolist() == [False, True, True, False]


def test_the_ratio_band_silences_what_drifted() -> None:
    """IcePop: outside the band a token has neither loss nor gradient; NaN is not silenced."""
    now = torch.tensor([-1.0, -3.0, 1.0, torch.nan]).requires_grad_()
    loss = Loss(ratio_low=0.5, ratio_high=2.0, kl_coefficient=0.1)
    found = token_losses(loss, now, torch.full((4,), -1.0), torch.ones(4), torch.zeros(4))
    assert found.kept.tolist() == [True, False, False, True]
    assert found.loss.isnan().tolist() == [False, False, False, True]
    (gradient,) = torch.autograd.grad(found.loss[:3].sum(), now)
    assert gradient[0] != 0
    assert not gradient[1:3].any()


def test_a_token_that_a_step_has_moved_out_of_the_band_is_left_to_the_clip() -> None:
    now, old = torch.tensor([-3.0, -3.0, -1.0]), torch.tensor([-1.0, torch.nan, -3.0])
    loss = Loss(ratio_low=0.5, ratio_high=2.0)
    found = token_losses(loss, now, torch.full((3,), -1.0), torch.tensor([-1.0, -1.0, 1.0]), None, old)
    assert found.kept.tolist() == [True, False, False]
    assert found.clipped[0]


def test_a_sequence_has_no_ratio_to_clip_before_the_first_step_with_it() -> None:
    """However small the clip is and however much trainer and sampler disagree; that only scales its loss."""
    now = torch.tensor([-0.9, -0.7, -1.3]).requires_grad_()
    found = gspo(now, (0, 0, 1), clip_low=1e-4, clip_high=1e-4)
    factors = [math.exp(0.2), math.exp(0.2), math.exp(-0.3)]
    assert not found.clipped.any()
    assert found.ratio.tolist() == pytest.approx(factors)
    (gradient,) = torch.autograd.grad(found.loss.sum(), now)
    assert gradient.tolist() == pytest.approx([-factor for factor in factors])


def test_a_sequence_is_clipped_as_one_although_a_token_of_it_would_not_be() -> None:
    now = torch.tensor([-0.9, -0.3]).requires_grad_()
    found = gspo(now, (0, 0), old=(-1.0, -1.0))
    assert found.clipped.tolist() == [True, True]
    (gradient,) = torch.autograd.grad(found.loss.sum(), now)
    assert not gradient.any()


def test_a_sequences_ratio_is_that_of_its_tokens_within_the_band() -> None:
    """A token that is left out has no gradient, and does not shift the ratio by which the others are clipped."""
    now = torch.tensor([-0.9, -9.0, -0.7, -1.3, -8.0]).requires_grad_()
    old = (-1.0, -9.0, -1.0, -1.0, -8.0)
    found = gspo(now, (0, 0, 0, 1, 2), old=old, ratio_low=0.5, ratio_high=2.0, clip_high=0.3)
    assert found.kept.tolist() == [True, False, True, True, False]
    shared = math.exp((0.1 + 0.3) / 2)
    assert found.ratio.tolist() == pytest.approx([shared] * 3 + [math.exp(-0.3), 1.0])
    assert found.loss.tolist() == pytest.approx([-shared, 0.0, -shared, -math.exp(-0.3), 0.0])
    (gradient,) = torch.autograd.grad(found.loss.sum(), now)
    assert gradient.tolist() == pytest.approx([-shared, 0.0, -shared, -math.exp(-0.3), 0.0])


def test_a_token_that_a_step_has_moved_out_of_the_band_still_counts_in_its_sequences_clip() -> None:
    """Otherwise the others of a bad completion would be pushed on: by themselves they have hardly moved."""
    now = torch.tensor([-3.0, -1.0, -1.0]).requires_grad_()
    found = gspo(now, (0, 0, 0), old=(-1.0,) * 3, advantage=-1.0, ratio_low=0.5, ratio_high=2.0)
    assert found.kept.all()
    assert found.clipped.all()
    (gradient,) = torch.autograd.grad(found.loss.sum(), now)
    assert not gradient.any()


def test_a_token_that_is_not_a_number_spoils_its_sequence_visibly() -> None:
    found = gspo(torch.tensor([-1.0, torch.nan, -1.0]), (0, 0, 1))
    assert found.loss.isnan().tolist() == [True, True, False]


def test_the_band_hides_no_advantage_that_is_not_finite() -> None:
    """A NaN advantage must spoil its policy's step, whatever its token's ratio."""
    found = token_losses(Loss(), torch.zeros(1), torch.full((1,), -9.0), torch.tensor([torch.nan]), None)
    assert found.loss.isnan().all()


def test_the_band_is_icepops_by_default() -> None:
    """The default band is 0.5 to 5 (arXiv 2510.18855)."""
    ratios = torch.tensor([0.4, 0.6, 1.0, 4.9, 5.1])
    found = token_losses(Loss(), ratios.log() - 1, torch.full((5,), -1.0), torch.ones(5), None)
    assert found.kept.tolist() == [False, True, True, True, False]


def test_a_ratio_never_overflows() -> None:
    free = Loss("importance_sampling", ratio_low=0.0, ratio_high=0.0)
    found = token_losses(free, torch.zeros(1), torch.full((1,), -1e4), torch.ones(1), None)
    assert found.loss.isfinite().all()


@pytest.mark.parametrize(
    ("scaling", "expected"), [("group", (1.49970, -0.49990)), ("none", (0.75, -0.25))], ids=["TRL", "Tinker cookbook"]
)
def test_golden_advantages(scaling: Scaling, expected: tuple[float, float]) -> None:
    """Advantages for the rewards 1, 0, 0, 0."""
    (found,) = group_advantages([[1.0, 0.0, 0.0, 0.0]], scaling)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1:] == pytest.approx([expected[1]] * 3, abs=1e-5)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_advantages_are_trls(groups: list[list[float]]) -> None:
    """The reference follows GRPOTrainer, using its own nanstd."""
    rewards = torch.tensor(groups, dtype=torch.float64)
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    scales: dict[Scaling, Any] = {
        "group": nanstd(rewards, dim=1)[:, None] + 1e-4, "batch": nanstd(rewards) + 1e-4, "none": 1.0
    }  # fmt: skip
    for scaling, scale in scales.items():
        found = torch.tensor(group_advantages(groups, scaling), dtype=torch.float64)
        torch.testing.assert_close(found, centred / scale, rtol=1e-5, atol=1e-5)


def test_groups_without_signal() -> None:
    assert not has_signal([])
    assert not has_signal([0.5, 0.5, 0.5])
    assert has_signal([0.5, 0.5, 0.6])
    assert group_advantages([[2.0], []]) == [[0.0], []]
    assert group_advantages([[0.5, 0.5]]) == [[0.0, 0.0]]


@given(reward=st.floats(-1e30, 1e30), count=st.integers(1, 64), scaling=st.sampled_from(["group", "batch", "none"]))
@example(reward=0.1, count=3, scaling="group")
@example(reward=1e12 + 0.1, count=13, scaling="group")
def test_rewards_that_are_all_alike_have_no_advantage_at_all(reward: float, count: int, scaling: Scaling) -> None:
    """This also holds if rounding makes their mean differ from each of them."""
    others = [reward] * count
    assert group_advantages([others, others], scaling) == [[0.0] * count] * 2
    assert group_advantages([[0.0, 1.0], others], scaling)[1] == [0.0] * count
