"""Biases and penalties are those of transformers and OpenAI, and affect only their own request."""

import asyncio
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from mint_contracts.sampling_pb2 import SamplingParams
from mint_engine.requests.parameters import Sampling, read_sampling
from mint_engine.requests.penalties import change_together, penalise
from mint_engine.requests.sampling import _draw
from mint_engine.requests.token_counts import TokenCounts
from tests.engine.running import Running, ask, running

VOCABULARY = 40
PROMPT = list(range(5, 25))

tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=20)
some_tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)


def logits_of(seed: int, rows: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))).to(dtype)


def plainly(row: list[float], sampling: Sampling, completion: list[int]) -> list[float]:
    """OpenAI's formula (platform.openai.com/docs/guides/text-generation, frequency and presence penalties)."""
    counts = [completion.count(token) for token in range(len(row))]
    return [
        logit - count * sampling.frequency_penalty - (count > 0) * sampling.presence_penalty
        for logit, count in zip(row, counts, strict=True)
    ]


@given(tokens, tokens, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 9))
def test_frequency_and_presence_count_the_completion_alone(
    prompt: list[int], completion: list[int], frequency: float, presence: float, seed: int
) -> None:
    sampling = Sampling(9, 0, frequency_penalty=frequency, presence_penalty=presence)
    token_counts, logits = TokenCounts().take(prompt + completion, len(prompt)), logits_of(seed)
    expected = torch.tensor([plainly(logits[0].tolist(), sampling, completion)])
    torch.testing.assert_close(penalise(logits, [(sampling, token_counts)]), expected)


@given(some_tokens, tokens, st.floats(0.1, 10), st.integers(0, 9))
def test_repetition_counts_prompt_and_completion_as_transformers_does(
    prompt: list[int], completion: list[int], penalty: float, seed: int
) -> None:
    token_counts = TokenCounts().take(prompt + completion, len(prompt))
    logits = logits_of(seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + completion]), logits.clone())
    sampling = Sampling(9, 0, repetition_penalty=penalty)
    torch.testing.assert_close(penalise(logits, [(sampling, token_counts)]), expected)


@given(some_tokens, tokens)
def test_tokens_taken_in_as_they_come_are_those_taken_in_at_once(prompt: list[int], completion: list[int]) -> None:
    """One by one, or several at once after steps in which they were not needed."""
    token_counts, every = TokenCounts(), [*prompt, *completion]
    for count in range(len(prompt), len(every) + 1):
        if count % 3:
            token_counts.take(every[:count], len(prompt))
    token_counts.take(every, len(prompt))
    assert sorted(token_counts.seen.tolist()) == sorted(set(every))
    counts = list(zip(token_counts.chosen.tolist(), token_counts.times.tolist(), strict=True))
    assert sorted(counts) == sorted(Counter(completion).items())


@given(tokens, tokens, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 9))
def test_counts_kept_as_they_come_give_the_bits_of_counts_taken_anew(
    prompt: list[int], completion: list[int], frequency: float, presence: float, seed: int
) -> None:
    sampling = Sampling(9, 0, frequency_penalty=frequency, presence_penalty=presence)
    token_counts, every = TokenCounts(), [*prompt, *completion]
    for count in range(len(prompt), len(every) + 1):
        token_counts.take(every[:count], len(prompt))
    logits, counts = logits_of(seed), Counter(completion)
    anew = logits.clone()
    found = torch.tensor(list(counts), dtype=torch.int64)
    anew[0, found] -= frequency * torch.tensor(list(counts.values()), dtype=torch.int64) + presence
    assert torch.equal(penalise(logits, [(sampling, token_counts)]), anew)


def test_a_long_completion_is_not_copied_for_each_of_its_tokens() -> None:
    """A thousand distinct tokens come one at a time: the buffers move only when they double."""
    token_counts, every = TokenCounts(), list(range(1000))
    places: dict[str, list[int]] = {"seen": [], "chosen": [], "times": []}
    for count in range(1, len(every) + 1):
        token_counts.take(every[:count], 0)
        for name, where in places.items():
            where.append(getattr(token_counts, name).data_ptr())
    for name, where in places.items():
        assert sum(before != after for before, after in pairwise(where)) == 10, name
    assert token_counts.chosen.tolist() == every
    assert token_counts.times.tolist() == [1.0] * len(every)


@given(st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), min_size=1), st.integers(0, 9))
def test_a_bias_is_added_as_by_transformers(biases: dict[int, float], seed: int) -> None:
    sampling, logits = Sampling(9, 0, logit_bias=tuple(biases.items())), logits_of(seed)
    told: list[list[list[int] | float]] = [[[token], bias] for token, bias in biases.items()]
    expected = SequenceBiasLogitsProcessor(told)(torch.tensor([[1, 2]]), logits.clone())
    torch.testing.assert_close(penalise(logits, [(sampling, TokenCounts())]), expected)


def test_each_row_is_its_own_and_the_logits_stay_as_they_are() -> None:
    logits = logits_of(1, 2, torch.bfloat16)
    before = logits.clone()
    first = Sampling(9, 0, presence_penalty=1.5), TokenCounts().take([1, 2, 2], 1)
    second = Sampling(9, 0, logit_bias=((7, 3.0),)), TokenCounts().take([1], 1)
    changed = penalise(logits, [first, second])
    assert torch.equal(logits, before)
    assert changed.dtype == torch.float32
    assert torch.nonzero(changed[0] != before[0].float()).flatten().tolist() == [2]
    assert torch.nonzero(changed[1] != before[1].float()).flatten().tolist() == [7]


ROWS = st.tuples(
    tokens,
    tokens,
    st.builds(
        Sampling,
        st.just(9),
        st.just(0.0),
        repetition_penalty=st.one_of(st.just(1.0), st.floats(0.1, 10)),
        frequency_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
        presence_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
        logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100)).map(
            lambda found: tuple(found.items())
        ),
    ),
)


@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 9))
def test_rows_that_are_changed_together_get_the_bits_of_each_changed_alone(
    rows: list[tuple[list[int], list[int], Sampling]], dtype: torch.dtype, seed: int
) -> None:
    asked = [
        (sampling, TokenCounts().take(prompt + completion, len(prompt))) for prompt, completion, sampling in rows
    ]
    logits = logits_of(seed, 2 * len(rows), dtype)[::2]
    expected, together = penalise(logits, asked), logits.to(torch.float32, copy=True).contiguous()
    change_together(together, asked)
    assert torch.equal(together, expected)
    for at, each in enumerate(asked):
        assert torch.equal(penalise(logits[at : at + 1], [each])[0], expected[at])


async def greedy(engine: Running, adapter: str, **sampling: Any) -> tuple[int, ...]:
    answer = await ask(engine, PROMPT, adapter, max_tokens=12, ignore_eos=True, **sampling)
    return answer.tokens


async def test_an_answer_follows_its_bias_and_its_penalties(base: Path, adapter: Path) -> None:
    async with running(base, {"a": adapter}) as engine:
        plain = await greedy(engine, "a")
        assert await greedy(engine, "a", logit_bias={9: 100.0}) == (9,) * 12
        once = await greedy(engine, "a", presence_penalty=2.0, frequency_penalty=2.0, logit_bias={9: 5.0})
        assert len(set(once)) > len(set(await greedy(engine, "a", logit_bias={9: 5.0})))
        banned = await greedy(engine, "a", logit_bias={plain[0]: -100.0})
        assert plain[0] not in banned
        scored = await ask(engine, PROMPT, "a", max_tokens=1, logprobs=1, logit_bias={plain[0]: -100.0})
        [score] = scored.scores
        assert score.top[0].token_id == plain[0], "log-probabilities are those of the model"


async def test_others_are_answered_as_if_alone(base: Path, adapter: Path) -> None:
    """Requests with and without penalties, beside each other."""
    asking: list[dict[str, Any]] = [{}, {"frequency_penalty": 2.0}, {"temperature": 1.0, "seed": 3}]
    asking += [{"repetition_penalty": 1.5, "temperature": 1.0, "seed": 3}]
    async with running(base, {"a": adapter}) as engine:
        alone = [await greedy(engine, "a", **each) for each in asking]
        assert len(set(alone)) == len(alone)
        together = await asyncio.gather(*(greedy(engine, "a", **each) for each in asking))
    assert together == alone


async def test_a_token_is_drawn_once_from_the_logits_as_they_are_changed(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def watched(logits: torch.Tensor, *given: Any) -> list[int]:
        drawn.append(len(logits))
        return _draw(logits, *given)

    monkeypatch.setattr("mint_engine.requests.sampling._draw", watched)
    async with running(base, {"a": adapter}) as engine:
        answer = await greedy(engine, "a", temperature=1.0, presence_penalty=1.0)
    assert sum(drawn) == len(answer)


def test_the_least_that_a_client_may_ask_for_is_taken_as_a_proto_rounds_it() -> None:
    sampling = read_sampling(SamplingParams(repetition_penalty=0.01), room=10, vocab_size=10)
    assert sampling.repetition_penalty == pytest.approx(0.01)
