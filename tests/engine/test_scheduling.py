"""Pages and scheduler under any order of arrivals and cancellations: nothing over capacity, nobody starves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint_engine.integrity import find_imbalance
from mint_engine.pages import PAGE_TOKENS, Pages, pages_for
from mint_engine.request import Request, Sampling, Sequence
from mint_engine.scheduler import Limits, Scheduler, split_budget
from mint_engine.text import TextStream

TOTAL_PAGES = 12
LIMITS = Limits(running=4, waiting=8, step_tokens=20)


def sequence(prompt: int, new: int, name: str = "") -> Sequence:
    request = Request(name, tuple(range(prompt)), Sampling(max_tokens=new, seed=0))
    return Sequence(request, lambda event: None, TextStream(lambda ids: "", (), ()))


def advance(scheduler: Scheduler) -> list[Sequence]:
    """What a step does to the books; returns who ended."""
    ended = []
    for share in scheduler.next_step():
        samples = share.samples
        share.sequence.computed += share.length
        if samples:
            share.sequence.tokens.append(0)
            if share.sequence.completion_tokens >= share.sequence.request.sampling.max_tokens:
                ended.append(share.sequence)
    for each in ended:
        scheduler.remove(each)
    return ended


class Arrivals(RuleBasedStateMachine):
    """Random arrivals, cancellations and steps."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS, Pages(TOTAL_PAGES))
        self.arrived: list[Sequence] = []

    @rule(prompt=st.integers(1, 100), new=st.integers(1, 60))
    def arrive(self, prompt: int, new: int) -> None:
        each = sequence(prompt, new)
        self.scheduler.add(each)
        self.arrived.append(each)

    @rule()
    def step(self) -> None:
        before = list(self.scheduler.waiting)
        admitted = self.scheduler.admit()
        assert admitted == before[: len(admitted)], "first in, first out"
        shares = self.scheduler.next_step()
        assert sum(share.length for share in shares) <= LIMITS.step_tokens
        assert all(1 <= share.length <= share.sequence.pending for share in shares)
        decoding = [each for each in self.scheduler.running if each.pending == 1]
        assert {id(each) for each in decoding} <= {id(share.sequence) for share in shares}, "decoding never waits"
        advance(self.scheduler)

    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [*self.scheduler.running, *self.scheduler.waiting]
        victim = data.draw(st.sampled_from(live))
        free, owned = self.scheduler.pages.free, len(victim.pages)
        self.scheduler.remove(victim)
        assert self.scheduler.pages.free == free + owned, "pages are free at once"

    @invariant()
    def books_balance(self) -> None:
        assert find_imbalance(self.scheduler) == ""

    @invariant()
    def everyone_has_room_to_finish(self) -> None:
        for each in self.scheduler.running:
            assert len(each.pages) * PAGE_TOKENS >= each.request.most_tokens

    def teardown(self) -> None:
        """Whatever has happened, all that arrived ends, within the steps that its tokens need."""
        live = [*self.scheduler.running, *self.scheduler.waiting]
        bound = sum(each.request.most_tokens for each in live) + len(live)
        for _ in range(bound):
            self.scheduler.admit()
            advance(self.scheduler)
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.scheduler.pages.free == TOTAL_PAGES


TestArrivals = Arrivals.TestCase


@given(st.lists(st.integers(0, 6), max_size=40))
def test_pages_are_never_shared_nor_lost(takes: list[int]) -> None:
    pages = Pages(TOTAL_PAGES)
    owners: list[list[int]] = []
    for count in takes:
        taken = pages.take(count)
        if taken is None:
            assert count > pages.free
            if owners:
                pages.give_back(owners.pop(0))
        else:
            owners.append(taken)
        owned = [page for owner in owners for page in owner]
        assert len(set(owned)) == len(owned)
        assert all(1 <= page <= TOTAL_PAGES for page in owned), "page 0 is nobody's"
        assert len(owned) + pages.free == TOTAL_PAGES


def test_a_page_goes_back_once() -> None:
    pages = Pages(2)
    taken = pages.take(1)
    assert taken is not None
    pages.give_back(taken)
    for wrong in (taken, [0], [3]):
        with pytest.raises(ValueError, match="not taken"):
            pages.give_back(wrong)


def test_a_large_request_is_not_overtaken() -> None:
    """One that must wait for pages holds the queue, so that small ones can't starve it."""
    scheduler = Scheduler(LIMITS, Pages(TOTAL_PAGES))
    for each in (sequence(100, 60, "first"), sequence(100, 60, "large"), sequence(1, 1, "small")):
        scheduler.add(each)
    assert [each.request.request_id for each in scheduler.admit()] == ["first"]
    assert [each.request.request_id for each in scheduler.admit()] == []


def test_prompts_share_what_decoding_leaves() -> None:
    decoding, long, short = sequence(1, 5), sequence(30, 5), sequence(4, 5)
    shares = split_budget([long, decoding, short], 20)
    assert [(share.sequence is decoding, share.length) for share in shares] == [(True, 1), (False, 19)]
    long.computed = 19
    shares = split_budget([long, decoding, short], 20)
    assert [share.length for share in shares] == [1, 11, 4]
    assert [share.samples for share in shares] == [True, True, True]


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_pages_for_tokens(tokens: int, pages: int) -> None:
    assert pages_for(tokens) == pages


def test_limits_leave_room_for_prompts() -> None:
    with pytest.raises(ValueError, match="must exceed"):
        Limits(running=64, step_tokens=64)


def test_an_imbalance_is_found() -> None:
    scheduler = Scheduler(LIMITS, Pages(TOTAL_PAGES))
    scheduler.add(sequence(20, 20))
    [running] = scheduler.admit()
    lost = running.pages.pop()
    assert "owned" in find_imbalance(scheduler)
    running.pages += [lost, lost]
    assert "two owners" in find_imbalance(scheduler)
