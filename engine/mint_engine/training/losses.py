"""Per-token losses of one policy, from the log-probabilities that it now gives to the tokens.

Letters: l the policy's log-probability of a token, s the sampler's, r = exp(l - s) their ratio, A the advantage.

| type                          | loss of a token                              | divided by            |
|-------------------------------|----------------------------------------------|-----------------------|
| grpo (arXiv 2402.03300)       | -min(r A, clip(r) A), mean of a completion   | completions           |
| bnpo, dapo (arXiv 2503.14476) | -min(r A, clip(r) A)                         | tokens                |
| dr_grpo (arXiv 2503.20783)    | -min(r A, clip(r) A)                         | completions x longest |
| cispo (arXiv 2506.13585)      | -clip(r) A l, with no gradient through clip  | tokens                |
| ppo (arXiv 1707.06347)        | -min(r A, clip(r) A)                         | nothing: a sum        |
| importance_sampling           | -r A                                         | nothing: a sum        |
| cross_entropy                 | -l                                           | nothing: a sum        |

At importance sampling level "sequence" (GSPO, arXiv 2507.18071), all tokens of a completion have one r, so that every
token's gradient depends on all of them. As in TRL it is exp of the mean of l - o, with o the policy's log-probability
before the first step with the completion: rounding alone moves the mean of l - s by more than the small clips that
suit a mean. The loss is multiplied by the constant exp of the mean of o - s, by which the sampler differs.

clip(r) clamps r to [1 - clip_low, 1 + clip_high]; for cispo only from above, unless a clip_low is set. With a KL
coefficient, its product with Schulman's k3 against the base is added: exp(b - l) - (b - l) - 1, where b is the base's
log-probability. A ratio band (IcePop, arXiv 2510.18855) leaves out tokens whose own exp(o - s) lies outside of it, on
which trainer and sampler disagree; also of a completion's means. How far steps have moved a token since is the clip's
concern.
"""

from dataclasses import dataclass

import torch

from mint_contracts.training import Loss

_MOST_LOG_RATIO = 20.0  # as in verl: e^20 is already beyond any clip, and nothing overflows


@dataclass(frozen=True)
class TokenLosses:
    """Losses and statistics of n tokens; all [n], float32 unless stated otherwise."""

    loss: torch.Tensor
    ratio: torch.Tensor  # of trainer to sampler: exp(l - s), or at level "sequence" exp of its mean
    clipped: torch.Tensor  # bool: the clip stops the token's gradient
    kept: torch.Tensor  # bool: within the ratio band
    kl: torch.Tensor  # k3 against the base; 0 without a KL coefficient


def token_losses(
    loss: Loss,
    now: torch.Tensor,
    sampler: torch.Tensor,
    advantages: torch.Tensor,
    base: torch.Tensor | None,
    old: torch.Tensor | None = None,
) -> TokenLosses:
    """Return the losses of n tokens, each by its own ratio; gradients flow to `now`.

    `base` is needed only with a KL coefficient. `old` are the policy's log-probabilities before its first step with
    the tokens; NaN, or None for all: those that it has now.
    """
    ratio, within = _ratio(now - sampler), within_band(loss, _ratio(_before(now, old) - sampler))
    return _losses(loss, now, advantages, base, (ratio, torch.ones_like(ratio)), within)


def sequence_losses(
    loss: Loss,
    now: torch.Tensor,
    sampler: torch.Tensor,
    advantages: torch.Tensor,
    base: torch.Tensor | None,
    old: torch.Tensor,
    examples: torch.Tensor,
) -> TokenLosses:
    """As `token_losses`, at level "sequence": `examples` [n] int64 says which tokens are one completion's.

    All weighted tokens of a completion must be here.
    """
    old = _before(now, old)
    within = within_band(loss, _ratio(old - sampler))
    moved, off = (_ratio(_means(each, within, examples)) for each in (now - old, old - sampler))
    return _losses(loss, now, advantages, base, (moved, off), within)


def _before(now: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    return torch.where(old.isnan(), now.detach(), old) if old is not None else now.detach()


def _losses(
    loss: Loss,
    now: torch.Tensor,
    advantages: torch.Tensor,
    base: torch.Tensor | None,
    ratios: tuple[torch.Tensor, torch.Tensor],
    within: torch.Tensor,
) -> TokenLosses:
    """Return losses by ratios: one that is clipped, and the rest of the trainer's to the sampler's, a constant."""
    ratio, rest = ratios
    bounded = ratio.clamp(loss.lowest, 1 + loss.clip_high)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    clipped = ((ratio < loss.lowest) & (advantages < 0)) | ((ratio > 1 + loss.clip_high) & (advantages > 0))
    if loss.type == "cross_entropy":
        value, clipped = -now, never
    elif loss.type == "importance_sampling":
        value, clipped = -ratio * advantages, never
    elif loss.type == "cispo":
        value, clipped = -bounded.detach() * advantages * now, ratio != bounded
    else:
        value = -torch.minimum(ratio * advantages, bounded * advantages)
    value = value * rest
    kl = torch.zeros_like(ratio)
    if base is not None and loss.kl_coefficient:
        kl = torch.exp((base - now).clamp(max=_MOST_LOG_RATIO)) - (base - now) - 1
        value = value + loss.kl_coefficient * kl
    kept = within | value.isnan() if loss.type != "cross_entropy" else ~never
    return TokenLosses(torch.where(kept, value, 0.0), (ratio * rest).detach(), clipped, kept, kl.detach())


def _ratio(logs: torch.Tensor) -> torch.Tensor:
    return torch.exp(logs.clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO))


def _means(logs: torch.Tensor, within: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
    """Return for each token the mean of `logs` [n] over those tokens of its example that are `within`."""
    found, at = torch.unique(examples, return_inverse=True)
    zeros = torch.zeros(len(found), dtype=torch.float64, device=logs.device)
    sums = zeros.index_add(0, at, torch.where(within, logs, 0.0).double())
    counts = zeros.index_add(0, at, within.double())
    return (sums / counts.clamp(min=1.0))[at].float()


def within_band(loss: Loss, ratio: torch.Tensor) -> torch.Tensor:
    """Return which ratios of trainer to sampler lie in the band, bool; NaN counts as within, to stay visible."""
    kept = torch.ones_like(ratio, dtype=torch.bool)
    if loss.ratio_low:
        kept &= ~(ratio < loss.ratio_low)
    if loss.ratio_high:
        kept &= ~(ratio > loss.ratio_high)
    return kept
