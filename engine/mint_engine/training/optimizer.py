"""AdamW and gradient clipping of one policy: torch.optim.AdamW and clip_grad_norm_ over one flat vector."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Optimizer
from mint_engine.model.device import settle
from mint_engine.training.policy import Policy, room_to_round, spans

_CLIP_EPSILON = 1e-6  # torch's, added to the norm
# Bounds of numbers whose squares float32 can hold: with an epsilon below _LEAST, a weight without any gradient would
# be 0 / 0; a gradient above _MOST would make its second moment infinite for ever.
_LEAST, _MOST = (math.sqrt(bound) for bound in (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max))
_STRETCH = 1 << 18  # numbers of each vector at a time on a CPU, whose caches then hold those of all; about 1 ms
_DEVICE_STRETCH = 1 << 24  # on a device, which needs more to be busy: 0.2 ms of an H100's memory
_NORMS = 16  # stretches between pauses for the norm, which reads one vector, while a step reads and writes five


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one optimizer step."""

    step: int  # steps taken so far
    grad_norm: float  # before the clip
    skipped: bool  # the loss, the gradient or its square was not finite: only the gradient was dropped


def check_rate(policy: Policy, optimizer: Optimizer) -> None:
    """Raise InvalidRequest for a learning rate with which the policy's next step would overflow float32."""
    rate = _rate(optimizer, policy.step + 1)
    if not rate <= torch.finfo(torch.float32).max:
        raise InvalidRequest(
            f"policy {policy.name}",
            f"would take a step by {rate:.3g} with its learning rate of {optimizer.learning_rate:.3g}; lower it",
        )


def take_step(policy: Policy, optimizer: Optimizer, dtype: torch.dtype) -> Generator[None, None, StepOutcome]:
    """Take one step with the policy's gradient, divided by its normaliser; the gradient is then forgotten.

    The new weights are also rounded to the base's `dtype` as they are written. Yields between bounded parts: before
    the first change the step can be cancelled without effect; from then on the policy is `torn` until all is done.
    """
    gradient = policy.gradient
    if gradient is None:
        raise RuntimeError(f"policy {policy.name} has no gradient")
    divisor = max(1.0, policy.normaliser)  # TRL's bound; without tokens there is no gradient either
    norm = yield from _norm(gradient, divisor)
    most = optimizer.max_grad_norm
    scale = min(1.0, most / (norm + _CLIP_EPSILON)) if most else 1.0
    skipped = policy.broken or not norm * scale <= _MOST  # the comparison is False for NaN
    if not skipped:
        yield from _adamw(policy, gradient, (divisor, scale), optimizer, dtype)
    policy.forget_gradient()
    return StepOutcome(policy.step, norm, skipped)


def _norm(gradient: torch.Tensor, divisor: float) -> Generator[None, None, float]:
    """Return the norm of gradient [n] / divisor; not finite if any part is not. The gradient stays unchanged."""
    stretch = _stretch(gradient)
    room = gradient.new_empty(min(stretch, gradient.numel()))
    norms = []
    for number, span in enumerate(spans(gradient, stretch), start=1):
        slope = gradient[span]
        over = torch.div(slope, divisor, out=room[: slope.numel()])
        norms.append(torch.linalg.vector_norm(over, dtype=torch.float64))
        if number % _NORMS == 0:
            yield
    return math.hypot(*torch.stack(norms).tolist())  # waits once for a device


def _adamw(
    policy: Policy, gradient: torch.Tensor, by: tuple[float, float], optimizer: Optimizer, dtype: torch.dtype
) -> Iterator[None]:
    """AdamW with decoupled weight decay (arXiv 1711.05101), in the order of torch.optim.AdamW's own operations.

    `by` holds the number that the gradient is divided by, and the factor that it is then scaled by.
    """
    (divisor, scale), step = by, policy.step + 1
    rate, beta1, beta2 = optimizer.learning_rate, optimizer.beta1, optimizer.beta2
    root, step_by = math.sqrt(1 - beta2**step), _rate(optimizer, step)
    epsilon = max(optimizer.epsilon, _LEAST)
    rounded = policy.rounded if policy.rounded is not None else room_to_round(policy, dtype)
    policy.torn, policy.rounded = True, None
    vectors = (policy.weights, policy.exp_avg, policy.exp_avg_sq, gradient, rounded)
    for span in spans(gradient, _stretch(gradient)):
        if span.start:
            yield
        weights, exp_avg, exp_avg_sq, slope, low = (each[span] for each in vectors)
        slope.div_(divisor).mul_(scale)
        weights.mul_(1 - rate * optimizer.weight_decay)
        exp_avg.lerp_(slope, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        spread = torch.sqrt(exp_avg_sq, out=slope).div_(root).add_(epsilon)  # the gradient has been used
        weights.addcdiv_(exp_avg, spread, value=-step_by)
        low.copy_(weights)
    settle(gradient.device)  # what fails on the device is raised while the policy is still torn
    policy.step, policy.rounded, policy.torn = step, rounded, False


def _stretch(vector: torch.Tensor) -> int:
    return _STRETCH if vector.device.type == "cpu" else _DEVICE_STRETCH


def _rate(optimizer: Optimizer, step: int) -> float:
    """Return the learning rate of a step (from 1), divided by the first moment's bias correction."""
    return optimizer.learning_rate / (1 - optimizer.beta1**step)
