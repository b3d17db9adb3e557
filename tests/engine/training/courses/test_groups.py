"""How groups of scored completions become a training batch."""

import pytest
import torch

from mint_contracts.training import Loss, LossType, Scaling
from mint_engine.policies.courses.groups import Group, batch_of, figures_of
from mint_engine.policies.rollouts import Rollout
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.sampling import choose_tokens, score_tokens
from mint_engine.training.pieces import normaliser

SAMPLING = Sampling(max_tokens=4, seed=0)


def group(*rewards: float) -> Group:
    return Group((5, 6), [Rollout([7, 8], [-1.0, -2.0]) for _ in rewards], rewards)


@pytest.mark.parametrize(("filter_groups", "learnt"), [(True, 2), (False, 5)])
def test_groups_whose_rewards_are_alike_are_left_out_only_where_the_loss_says_so(
    filter_groups: bool, learnt: int
) -> None:
    """Groups of equal rewards count in the loss's divisor although their advantages are zero."""
    batch = batch_of("p", [group(1.0, 1.0, 1.0), group(0.0, 1.0)], Loss(filter_groups=filter_groups), SAMPLING)
    assert batch is not None
    assert len(batch.examples) == learnt
    pulls = [set(each.advantages) - {0.0} for each in batch.examples]
    assert [bool(each) for each in pulls] == [False] * (learnt - 2) + [True] * 2


@pytest.mark.parametrize(
    ("kind", "filter_groups", "divisor"),
    [
        ("dapo", True, 4.0),
        ("dapo", False, 10.0),
        ("grpo", True, 2.0),
        ("grpo", False, 5.0),
        ("dr_grpo", True, 8.0),
        ("dr_grpo", False, 20.0),
    ],
)
def test_groups_that_are_left_out_are_no_part_of_what_the_loss_is_divided_by(
    kind: LossType, filter_groups: bool, divisor: float
) -> None:
    """The divisor counts tokens, completions, or completions times the longest; without the filter over all groups,
    as in TRL."""
    loss = Loss(type=kind, filter_groups=filter_groups)
    batch = batch_of("p", [group(1.0, 1.0, 1.0), group(0.0, 1.0)], loss, SAMPLING)
    assert batch is not None
    assert normaliser(batch) == divisor


@pytest.mark.parametrize(("kind", "divisor"), [("dapo", 4.0), ("grpo", 3.0), ("dr_grpo", 12.0)])
def test_completions_that_were_cut_off_weigh_nothing_where_the_loss_says_so(kind: LossType, divisor: float) -> None:
    """Their rewards count in the others' advantages, and they in what the loss is divided by, as in TRL."""
    cut = Group((5, 6), [Rollout([7, 8], [-1.0, -2.0], stopped=at != 1) for at in range(3)], (0.0, 1.0, 2.0))
    batch, plain = (
        batch_of("p", [cut], Loss(type=kind, mask_truncated_completions=mask), SAMPLING) for mask in (True, False)
    )
    assert batch is not None
    assert plain is not None
    assert [list(each.weights) for each in batch.examples] == [[0.0, 1.0, 1.0], [0.0] * 3, [0.0, 1.0, 1.0]]
    assert [each.advantages for each in batch.examples] == [each.advantages for each in plain.examples]
    assert all(any(each.weights) for each in plain.examples)
    assert normaliser(batch) == divisor


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_nothing_is_learnt_where_all_completions_with_a_signal_were_cut_off(kl: float) -> None:
    """An optimizer would take a step even along a gradient of nothing but zeros."""
    cut = Group((5, 6), [Rollout([7], [-1.0], stopped=at == 1) for at in range(3)], (0.0, 1.0, 2.0))
    loss = Loss(mask_truncated_completions=True, kl_coefficient=kl)
    batch = batch_of("p", [cut], loss, SAMPLING)
    assert (batch is None) is (kl == 0.0), "the one that ended has the group's mean reward; only a KL changes it"
    ended_nowhere = Group((5, 6), [Rollout([7], [-1.0]) for _ in range(2)], (0.0, 1.0))
    assert batch_of("p", [ended_nowhere], loss, SAMPLING) is None


def test_a_step_tells_of_all_its_completions() -> None:
    """Whether anything is learnt from them or not."""
    ended, cut = Rollout([7], [-1.0], stopped=True), Rollout([7, 8, 9], [-1.0, -1.0, -2.0])
    groups = [Group((5,), [ended, cut], (0.0, 2.0)), Group((6,), [ended, ended], (1.0, 1.0))]
    expected = {"completion_length": 1.5, "truncated": 0.25, "entropy": 7 / 6}
    assert figures_of(groups) == pytest.approx(expected | {"reward_std": 2**0.5 / 2, "no_signal": 0.5})


def entropy(logits: torch.Tensor) -> float:
    logprobs = logits.log_softmax(0)
    return -float((logprobs.exp() * logprobs).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kept", [0, 3])
def test_the_entropy_told_is_that_of_what_tokens_are_drawn_from(temperature: float, kept: int) -> None:
    """With filters it lies between the entropy of the tokens that they leave and that of all of them."""
    count, one = 4096, torch.linspace(2.0, -2.0, 12)
    sampling = [Sampling(max_tokens=1, seed=seed, temperature=temperature, top_k=kept) for seed in range(count)]
    logits = one.expand(count, -1).contiguous()
    drawn = [token for token in choose_tokens(logits, [(each, 0) for each in sampling]) if token is not None]
    scores = score_tokens(logits / temperature, drawn, 0)
    rollouts = [Rollout([each.token_id], [each.logprob]) for each in scores]
    told = figures_of([Group((5,), rollouts, [0.0] * count)])["entropy"]
    likely, every = (entropy(some / temperature) for some in (one[: kept or None], one))
    assert likely - 0.05 < told < every + 0.05


@pytest.mark.parametrize("filter_groups", [True, False])
@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
@pytest.mark.parametrize("rewards", [(1.0, 1.0), (0.1, 0.1, 0.1)])
def test_nothing_is_learnt_where_no_group_has_a_signal(
    rewards: tuple[float, ...], scaling: Scaling, filter_groups: bool
) -> None:
    """This also holds if the mean of equal rewards is rounded to a different number."""
    loss = Loss(filter_groups=filter_groups, scale_rewards=scaling)
    assert batch_of("p", [group(*rewards)] * 2, loss, SAMPLING) is None
