"""Sampling: filters as in transformers, draws that depend on seed and index alone, scores of the raw logits."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mint_engine.requests import sampling
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.sampling import choose_tokens, invert, keep_likely, score_tokens, uniform

VOCAB = 600


def draw_logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 5, 50, VOCAB + 5]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_filters_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = draw_logits(1, seed)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = torch.softmax(warpers(torch.LongTensor([[0]]), torch.FloatTensor(logits.clone())), -1)[0]
    found = torch.softmax(logits[0] / temperature, -1)
    keep_likely(found[None], [Sampling(1, 0, temperature, top_k=top_k, top_p=top_p, min_p=min_p)])
    torch.testing.assert_close(found / found.sum(), expected, rtol=1e-4, atol=1e-6)


def test_filtering_a_row_does_not_depend_on_its_neighbours() -> None:
    """Rows are cut by each of the filters, one by none; and of a flat one no token is less likely than another."""
    cuts: list[dict[str, Any]] = [{}, {"top_k": 7}, {"top_k": 400}, {"top_p": 0.3}, {"top_p": 0.999}, {"min_p": 0.2}]
    cuts += [{"top_k": 50, "top_p": 0.6, "min_p": 0.05}, {"top_p": 0.9}]
    samplings = [Sampling(1, 0, 1.0, **cut) for cut in cuts]
    probabilities = torch.softmax(draw_logits(len(cuts), 4), -1)
    probabilities[-1] = 1 / VOCAB
    alone = probabilities.clone()
    keep_likely(probabilities, samplings)
    for row, each in zip(alone, samplings, strict=True):
        keep_likely(row[None], [each])
    assert torch.equal(probabilities, alone)
    *left, flat = probabilities.count_nonzero(dim=-1).tolist()
    assert len(set(left)) == len(left), "each is cut in a way of its own"
    assert flat == VOCAB


def test_only_rows_whose_top_p_takes_more_than_a_few_tokens_are_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time, since each takes several numbers for every token of the vocabulary."""
    topk, sorted_whole = torch.topk, list[int]()

    def watched(rows: torch.Tensor, count: int, **options: Any) -> Any:
        if count > sampling._NUCLEUS:
            sorted_whole.append(rows.shape[0])
        return topk(rows, count, **options)

    flat, peaked = torch.zeros(20, VOCAB), draw_logits(4, 6)
    shares = [*[0.9] * 20, 0.9, 0.3, 1.0, 1.0]
    samplings = [Sampling(1, 0, 1.0, top_p=share) for share in shares]
    probabilities = torch.softmax(torch.cat((flat, peaked)), -1)
    alone, without_flat = probabilities.clone(), probabilities[20:].clone()
    monkeypatch.setattr(torch, "topk", watched)
    keep_likely(without_flat, samplings[20:])
    assert sorted_whole == []
    keep_likely(probabilities, samplings)
    assert sorted_whole == [8, 8, 4]
    for row, each in zip(alone, samplings, strict=True):
        keep_likely(row[None], [each])
    assert torch.equal(probabilities, alone)
    assert torch.equal(probabilities[20:], without_flat)


def test_a_request_chooses_alike_whoever_is_beside_it() -> None:
    logits = draw_logits(8, 1)
    wanted = [(Sampling(9, seed=row, temperature=0.5 * row, top_p=0.9 if row % 2 else 1.0), row) for row in range(8)]
    together = choose_tokens(logits, wanted)
    alone = [choose_tokens(logits[row : row + 1], [wanted[row]])[0] for row in range(8)]
    backwards = choose_tokens(logits.flip(0), wanted[::-1])[::-1]
    assert together == alone == backwards


def test_greedy_is_the_likeliest() -> None:
    logits = draw_logits(3, 2)
    assert choose_tokens(logits, [(Sampling(1, seed=5), 0)] * 3) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_what_leaves_only_the_likeliest_token_chooses_the_first_of_equals(only: dict[str, Any]) -> None:
    """bfloat16 has many equals, and others than the first would come and go with the seed."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0]], dtype=torch.bfloat16)
    wanted = [Sampling(1, seed, **({"temperature": 1.0} | only)) for seed in range(20)]
    assert [choose_tokens(logits, [(each, 0)]) for each in wanted] == [[1]] * 20


def test_a_tiny_temperature_is_greedy_and_a_great_one_uniform() -> None:
    logits = draw_logits(1, 3)
    cold = [(Sampling(1, seed=1, temperature=1e-30), 0)]
    assert choose_tokens(logits, cold) == logits.argmax(-1).tolist()
    hot = {choose_tokens(logits, [(Sampling(1, seed=1, temperature=100.0), index)])[0] for index in range(300)}
    assert len(hot) > 200


def test_draws_follow_the_distribution() -> None:
    """4,000 draws from (0.5, 0.3, 0.2, 0): each share within four standard deviations, nothing impossible."""
    shares, count = (0.5, 0.3, 0.2, 0.0), 4000
    logits = torch.tensor([shares]).log()
    drawn = Counter(choose_tokens(logits, [(Sampling(1, seed=11, temperature=1.0), n)])[0] for n in range(count))
    for token, share in enumerate(shares):
        assert abs(drawn[token] - count * share) <= 4 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize("number", [0.0, 0.4999, 0.5, 1.0 - 2**-53])
def test_inverting_never_lands_on_the_impossible(number: float) -> None:
    [token] = invert(torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]), [number])
    assert token == (1 if number < 0.5 else 3)


def test_uniform_numbers_differ_by_seed_and_index() -> None:
    numbers = {uniform(seed, index) for seed in (0, 1, 2**64 - 1) for index in range(1000)}
    assert len(numbers) == 3000
    assert all(0 <= number < 1 for number in numbers)


@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 3, 50]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_likeliest_are_the_same_however_many_are_asked_for(seed: int, levels: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (3, 97), generator=drawn).to(dtype)
    expected = logits.float().sort(dim=-1, descending=True, stable=True).indices.tolist()
    for top in (1, 2, 20, 96, 97, 200):
        scores = score_tokens(logits, [0, 1, 2], top)
        assert [[token for token, _ in score.top] for score in scores] == [row[:top] for row in expected]


def test_the_vocabulary_is_not_looked_through_again_for_a_few_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all rows in bfloat16 have some beside the twentieth likeliest token, and every step would wait."""
    logits = -torch.arange(VOCAB, dtype=torch.float32)[None]
    logits[0, [90, 5, 300, 17]] = 1.0
    looked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "nonzero", looked.append)
    [score] = score_tokens(logits, [0], 3)
    assert [token for token, _ in score.top] == [5, 17, 90]
    assert looked == []


def test_scores_are_log_softmax_of_the_raw_logits() -> None:
    logits = draw_logits(2, 4)
    expected = torch.log_softmax(logits, -1)
    first, second = score_tokens(logits, [7, 9], 3)
    assert (first.token_id, second.token_id) == (7, 9)
    assert first.logprob == pytest.approx(float(expected[0, 7]))
    assert [token for token, _ in second.top] == expected[1].topk(3).indices.tolist()
    assert score_tokens(logits[:0], [], 3) == []
