"""Slow masks: each step gives them a limited time, rows that wait get the same tokens later, and adapters pay."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_engine import metrics
from mint_engine.requests import masks
from mint_engine.requests.grammar import SLOW_S, Grammar, Grammars, Shape
from mint_engine.requests.masks import Late, mask
from mint_engine.scheduling import masking
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT, FairShare
from mint_engine.scheduling.masking import cost, in_turn
from mint_engine.scheduling.request import Completion, Party
from tests.engine.running import Answer, Running, ask, running, save_sliding_base
from tests.engine.scheduled import completion

PROMPT = list(range(5, 25))
WORD = 32


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """A tokenizer whose tokens fill complete words of a mask."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    found.add_tokens([f"<more {n}>" for n in range(-len(found) % WORD)])
    assert len(found) % WORD == 0
    return found


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, {0})


def held(grammars: Grammars, slow: str) -> list[Grammar]:
    """A grammar for each letter from a on, which allows only that letter; those in `slow` were slow before."""
    found = [grammars.compile(Shape("regex", letter)) for letter in "abcdef"]
    for grammar, letter in zip(found, "abcdef", strict=True):
        grammar.mask_s = 1.0 if letter in slow else 0.0
    return found


def told(row: torch.Tensor) -> set[int]:
    return set(torch.nonzero(row == 0).flatten().tolist())


@pytest.mark.parametrize("slow", ["", "abcdef", "bd"])
def test_each_row_gets_its_own_mask_whether_slow_or_quick(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    monkeypatch.setattr(masks, "BUDGET_S", math.inf)
    own = held(grammars, slow)
    logits = torch.zeros(6, len(tokenizer))
    assert mask(own, logits, [3, 1, 5, 0, 2, 4]) == {}
    assert [told(row) for row in logits] == [{token} for token in tokenizer.encode("abcdef")]
    assert all(0 < grammar.mask_s < 1 for grammar in own), "by how long this one took"
    assert own[0].copy().mask_s == own[0].mask_s


@pytest.mark.parametrize("slow", ["", "abcdef", "bd"])
@pytest.mark.parametrize("first", [1, 2])
def test_without_time_only_the_first_in_turn_gets_its_mask(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, slow: str, first: int
) -> None:
    monkeypatch.setattr(masks, "BUDGET_S", 0.0)
    logits = torch.zeros(7, len(tokenizer))
    turns = [6, first, *({0, 1, 2, 3, 4, 5} - {first})]
    late = mask([*held(grammars, slow), None], logits, turns)
    assert set(late) == {0, 1, 2, 3, 4, 5} - {first}
    assert all(isinstance(each, Late) for each in late.values())
    assert told(logits[first]) == set(tokenizer.encode("abcdef"[first]))
    assert told(logits[6]) == set(range(len(tokenizer))), "who has no grammar waits for no mask"


class Clock:
    """Time that advances by a second with each slow mask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.masked = 0.0, list[Grammar]()
        one_by_one = masks._one_by_one

        def counted(places: Iterator[int], grammars: list[Grammar], *given: Any) -> None:
            for at in places:
                one_by_one([at], grammars, *given)
                self.masked.append(grammars[at])
                self.now += 1

        monkeypatch.setattr(masks, "_one_by_one", counted)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Slow:
    """A matcher whose masks take the given seconds, while all others take none."""

    def __init__(self, grammar: Grammar, takes_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.takes_s, self._now, self._matcher = takes_s, 0.0, grammar.matcher
        grammar.matcher = self  # type: ignore[assignment]
        for clock in ("perf_counter", "thread_time"):
            monkeypatch.setattr(time, clock, lambda: self._now)

    def unsafe_compute_mask_ptr(self, *given: int) -> None:
        self._matcher.unsafe_compute_mask_ptr(*given)
        self._now += self.takes_s

    def is_error(self) -> bool:
        return self._matcher.is_error()


class InTurn:
    """Replaces the threads: computes masks one after another."""

    def unsafe_compute_mask_ptr(self, rows: list[tuple[Any, int]], first: int, stride: int, _: int) -> None:
        for matcher, at in rows:
            matcher.unsafe_compute_mask_ptr(first + at * stride, stride)


def test_a_slow_mask_is_charged_only_to_its_own_request(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed together, it may be anybody's; later, grammars that were slow are computed alone for some tokens."""
    own, logits = held(grammars, ""), torch.zeros(6, len(tokenizer))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(masks, "_EACH", len(own))
    monkeypatch.setattr(masks, "_threads", InTurn)
    monkeypatch.setattr(masks, "BUDGET_S", math.inf)
    slow, paid = Slow(own[2], 0.0, monkeypatch), []
    for takes_s in (0.125, 0.125, 0.0, 0.125):
        slow.takes_s = takes_s
        assert mask(own, logits) == {}
        paid.append([cost(each.paid_s) for each in own])
    assert paid == [[0] * 6, *([0, 0, cost(each), 0, 0, 0] for each in (0.125, 0.0, 0.125))]


def test_quick_masks_come_before_slow_ones_which_begin_while_there_is_time(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(masks, "BUDGET_S", 1.5)
    clock = Clock(monkeypatch)
    own = held(grammars, "abcd")
    late = mask(own, torch.zeros(6, len(tokenizer)), [2, 0, 1, 3, 4, 5])
    assert clock.masked == [own[2], own[0]]
    assert set(late) == {1, 3}


@given(
    late=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    adapters=st.lists(st.sampled_from("ab"), min_size=8, max_size=8),
)
def test_the_request_that_is_late_longest_comes_first_then_the_least_served(
    late: list[int], adapters: list[str]
) -> None:
    rows = [completion(3, adapter=adapter) for adapter, _ in zip(adapters, late, strict=False)]
    for at, (row, steps) in enumerate(zip(rows, late, strict=True)):
        row.late, row.arrival = steps, at
    service = {Party("a", False): 7, Party("b", False): 3}
    first, *others = in_turn(rows, service.__getitem__)
    assert sorted([first, *others]) == list(range(len(rows)))
    assert rows[first].late == max(late)
    ranks = [(service[rows[at].request.party], -rows[at].late, at) for at in others]
    assert ranks == sorted(ranks)


def test_each_gets_its_turn_though_others_that_were_served_less_come_without_end() -> None:
    rows, served = (
        [completion(3, adapter="old") for _ in range(5)],
        {Party("old", False): 10**6, Party("new", False): 0},
    )
    waited = set(rows)
    for step in range(7):
        rows += [completion(3, adapter="new") for _ in range(2)]
        for at, row in enumerate(rows):
            row.arrival = at
        first, *others = in_turn(rows, served.__getitem__)
        for at in others:
            rows[at].late += 1
        rows[first].late = 0
        waited.discard(rows[first])
        assert step or rows[first].request.adapter == "new"
    assert not waited


def test_a_slow_mask_is_service_and_a_quick_one_is_none() -> None:
    assert cost(SLOW_S / 20) == 0
    assert cost(0.033) == 33


ASKED: list[dict[str, Any]] = [
    {"regex": "[a-z ]{60}", "temperature": 1.0, "seed": 3, "logprobs": 2},
    {"regex": "[a-z ]{60}", "temperature": 1.0, "seed": 4, "presence_penalty": 2.0, "repetition_penalty": 1.5},
    {"json_schema": '{"type": "array", "items": {"type": "integer", "maximum": 300}, "minItems": 4}'},
    {"regex": "[a-z]{3,12}", "n": 1, "prompt_logprobs": True},
    {"regex": "([a-z]{1,9} ){9}[.]", "temperature": 1.5, "seed": 5, "stop": ["xy"]},
    {"ignore_eos": True, "temperature": 1.0, "seed": 6, "logprobs": 1},
]


@dataclass
class Lateness:
    """The late rows, the longest run of late steps, and the most masks computed in a step."""

    rows: int = 0
    longest: int = 0
    masked: int = 0


@pytest.fixture
def lateness(monkeypatch: pytest.MonkeyPatch) -> Lateness:
    """For steps with time for only one mask."""
    seen = Lateness()

    def spy(completions: list[Completion], service: Callable[[Party], int]) -> list[int]:
        seen.longest = max(seen.longest, *(each.late for each in completions))
        return in_turn(completions, service)

    def look(grammars: list[Grammar]) -> Any:
        found, troubles = inner(grammars)
        late = sum(isinstance(each, Late) for each in troubles.values())
        seen.rows, seen.masked = seen.rows + late, max(seen.masked, len(grammars) - late)
        return found, troubles

    inner = masks._look
    monkeypatch.setattr(masks, "BUDGET_S", 0.0)
    monkeypatch.setattr("mint_engine.scheduling.generation.in_turn", spy)
    monkeypatch.setattr(masks, "_look", look)
    return seen


async def answers(engine: Running, names: list[str], *, together: bool) -> list[Answer]:
    """Answers to prompts that end at a page's border and elsewhere."""
    asked = [
        ask(engine, PROMPT[: 14 + at], name, max_tokens=60, **each) for name in names for at, each in enumerate(ASKED)
    ]
    return list(await asyncio.gather(*asked)) if together else [await each for each in asked]


@pytest.mark.parametrize("kind", ["adapter", "sliding", "few pages"])
async def test_a_request_that_waits_answers_as_alone(
    base: Path, adapter: Path, tmp_path: Path, lateness: Lateness, kind: str
) -> None:
    place = save_sliding_base(tmp_path) if kind == "sliding" else base
    own = {"a": adapter} if kind == "adapter" else {}
    names = ["", "a"] if own else [""]
    cache = 1 << 16 if kind == "few pages" else 4 << 20
    before = metrics.PREEMPTED_FOR_PAGES._value.get()
    async with running(place, own, kv_cache_bytes=cache, context_length=96) as engine:
        alone = await answers(engine, names, together=False)
        assert lateness.rows == 0
        together = await answers(engine, names, together=True)
    for one, other in zip(alone, together, strict=True):
        assert (other.tokens, other.text, other.finished.reason) == (one.tokens, one.text, one.finished.reason)
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
    assert lateness.rows > 0
    assert lateness.masked == 1
    assert lateness.longest <= len(names) * len(ASKED)
    assert (metrics.PREEMPTED_FOR_PAGES._value.get() > before) == (kind == "few pages")


async def test_requests_without_a_shape_wait_for_no_mask(base: Path, lateness: Lateness) -> None:
    """Ten requests that must take turns, and one that gets 60 tokens in as many steps."""
    async with running(base) as engine:
        shaped = [
            asyncio.create_task(ask(engine, PROMPT, regex="[a-z]{80}", max_tokens=30, temperature=1.0, seed=at))
            for at in range(10)
        ]
        plain = await ask(engine, PROMPT, max_tokens=60, ignore_eos=True)
        assert len(plain.tokens) == 60
        assert not all(each.done() for each in shaped), "300 of their tokens take 300 steps"
        await asyncio.gather(*shaped)
    assert lateness.masked == 1


async def test_the_time_of_slow_masks_is_charged_to_their_adapter(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "SLOW_S", 0.0)  # so that all of them are slow
    monkeypatch.setattr(masking, "_SERVICE_S", 1e-12)
    new, charged = 40, Counter[str]()
    charge = FairShare.charge

    def noted(self: FairShare, party: Party, service: int) -> None:
        charged[party.adapter] += service
        charge(self, party, service)

    monkeypatch.setattr(FairShare, "charge", noted)
    async with running(base, {"slow": adapter, "quick": adapter}) as engine:
        await asyncio.gather(
            ask(engine, PROMPT, "slow", regex="[a-z]{80}", max_tokens=new),
            ask(engine, PROMPT[::-1], "quick", max_tokens=new, ignore_eos=True),  # shares no prefix with the other
        )
    assert charged["quick"] == len(PROMPT) + COMPLETION_WEIGHT * new
    assert charged["slow"] > 1000 * charged["quick"]
