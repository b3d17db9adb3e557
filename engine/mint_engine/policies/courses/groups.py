"""From completions and their rewards to what a policy learns: group advantages, without groups that teach nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mint_contracts.training import Loss
from mint_engine.policies.rollouts import Rollout
from mint_engine.requests.parameters import Sampling
from mint_engine.training.advantages import deviation, group_advantages, has_signal
from mint_engine.training.example import Example, PolicyBatch, completion


@dataclass(frozen=True)
class Group:
    """One prompt's completions and their rewards, in the same order."""

    prompt: tuple[int, ...]
    rollouts: Sequence[Rollout]
    rewards: Sequence[float]


def batch_of(policy: str, groups: Sequence[Group], loss: Loss, sampling: Sampling) -> PolicyBatch | None:
    """Return what the policy learns from a step's groups, or None if nothing would change: no token has a signal.

    Groups whose rewards are all equal are left out if the loss says so (arXiv 2503.14476's dynamic sampling, except
    that no others are drawn in their place). A batch's standard deviation and the loss's divisor then count only the
    remaining groups' rewards, tokens and completions; TRL, which filters none, divides by those of all.

    Truncated completions weigh nothing if the loss says so (overlong filtering in arXiv 2503.14476). As in TRL they
    still count in their group's advantages, and as completions in the divisor.
    """
    kept = [group for group in groups if not loss.filter_groups or has_signal(group.rewards)]
    advantages = group_advantages([group.rewards for group in kept], loss.scale_rewards)
    taken = [
        (group.prompt, rollout, advantage, rollout.stopped or not loss.mask_truncated_completions)
        for group, values in zip(kept, advantages, strict=True)
        for rollout, advantage in zip(group.rollouts, values, strict=True)
    ]
    if not any(counts and (advantage or loss.kl_coefficient) for _, _, advantage, counts in taken):
        return None
    examples = [
        completion(prompt, rollout.tokens, rollout.logprobs, advantage, rollout.routes, weight=float(counts))
        for prompt, rollout, advantage, counts in taken
    ]
    return PolicyBatch(policy, examples, loss, sampling.max_tokens, sampling.scored_at)


def figures_of(groups: Sequence[Group]) -> dict[str, float]:
    """Return what a step's log line says of all of its completions, learnt from or not.

    `entropy` is the mean of -log p over sampled tokens, in nats; p is the policy at the sampling temperature. Since
    tokens are drawn from p, it estimates its entropy, which need not be computed for each. With top_p or top_k, they
    are drawn only from p's likeliest ones: it then estimates a number between the entropy of p restricted to these
    (and rescaled) and that of p. Nothing else restricts the tokens of rollouts.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "completion_length": fmean(len(each.tokens) for each in rollouts),
        "truncated": fmean(not each.stopped for each in rollouts),
        "entropy": sum(-sum(each.logprobs) for each in rollouts) / sum(len(each.logprobs) for each in rollouts),
        "reward_std": fmean(deviation(group.rewards) for group in groups),
        "no_signal": fmean(not has_signal(group.rewards) for group in groups),
    }


def supervised(policy: str, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], loss: Loss) -> PolicyBatch:
    """Return a batch of prompts with answers to learn; each answer token weighs 1 / (answer tokens in the batch)."""
    count = sum(len(answer) for _, answer in pairs)
    examples = [
        Example(
            tokens=[*prompt, *answer[:-1]],
            targets=[*prompt[1:], *answer],
            weights=[0.0] * (len(prompt) - 1) + [1.0 / count] * len(answer),
        )
        for prompt, answer in pairs
    ]
    return PolicyBatch(policy, examples, loss)
