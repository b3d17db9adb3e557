"""AdamW and the gradient's clip of one policy: torch.optim.AdamW and clip_grad_norm_ over one flat vector."""

import math
from dataclasses import dataclass

import torch

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Optimizer
from mint_engine.training.policy import Policy, room_to_round

_CLIP_EPSILON = 1e-6  # torch's, beside the norm
_STRETCH = 1 << 18  # numbers of each vector at a time on a CPU: those of all vectors stay in its caches


@dataclass(frozen=True)
class StepOutcome:
    """What came of one optimizer step."""

    step: int  # steps taken so far
    grad_norm: float  # before the clip
    skipped: bool  # the loss or the gradient was not finite: it was dropped and nothing else changed


def check_rate(policy: Policy, optimizer: Optimizer) -> None:
    """Raises InvalidRequest for a learning rate with which the policy's next step would leave float32."""
    rate = _rate(optimizer, policy.step + 1)
    if not rate <= torch.finfo(torch.float32).max:
        raise InvalidRequest(
            f"policy {policy.name}",
            f"would take a step by {rate:.3g} with its learning rate of {optimizer.learning_rate:.3g}; lower that",
        )


def take_step(policy: Policy, optimizer: Optimizer, dtype: torch.dtype) -> StepOutcome:
    """Take the policy's gradient, divided by its normaliser, for one step; afterwards there is none.

    The new weights are rounded to the base's `dtype` as they are written.
    """
    gradient = policy.gradient
    if gradient is None:
        raise RuntimeError(f"policy {policy.name} has no gradient")
    gradient /= max(1.0, policy.normaliser)  # TRL's bound: a batch of no tokens has no gradient either
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    skipped = policy.broken or not math.isfinite(norm)
    if not skipped:
        if optimizer.max_grad_norm:
            gradient *= min(1.0, optimizer.max_grad_norm / (norm + _CLIP_EPSILON))
        policy.step += 1
        _adamw(policy, gradient, optimizer, dtype)
    policy.forget_gradient()
    return StepOutcome(policy.step, norm, skipped)


def _adamw(policy: Policy, gradient: torch.Tensor, optimizer: Optimizer, dtype: torch.dtype) -> None:
    """Decoupled weight decay (arXiv 1711.05101), in the order of torch.optim.AdamW's own operations."""
    rate, beta1, beta2 = optimizer.learning_rate, optimizer.beta1, optimizer.beta2
    root, step_by = math.sqrt(1 - beta2**policy.step), _rate(optimizer, policy.step)
    rounded = policy.rounded if policy.rounded is not None else room_to_round(policy, dtype)
    policy.rounded = None
    vectors = (policy.weights, policy.exp_avg, policy.exp_avg_sq, gradient, rounded)
    stretch = _STRETCH if gradient.device.type == "cpu" else gradient.numel()
    for start in range(0, gradient.numel(), stretch):
        weights, exp_avg, exp_avg_sq, slope, low = (each[start : start + stretch] for each in vectors)
        weights.mul_(1 - rate * optimizer.weight_decay)
        exp_avg.lerp_(slope, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        spread = torch.sqrt(exp_avg_sq, out=slope).div_(root).add_(optimizer.epsilon)  # the gradient has been used
        weights.addcdiv_(exp_avg, spread, value=-step_by)
        low.copy_(weights)
    policy.rounded = rounded


def _rate(optimizer: Optimizer, step: int) -> float:
    """That of a step (from 1), with the first moment's bias corrected."""
    return optimizer.learning_rate / (1 - optimizer.beta1**step)
