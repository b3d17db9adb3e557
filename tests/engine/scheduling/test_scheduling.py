"""Admission, growth and preemption under any order of arrivals and cancellations: nothing over capacity, every
request ends, and no generated token is lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mint_contracts.layer_groups import PAGE_TOKENS, LayerGroups, first_seen, pages_for
from mint_engine.scheduling.budget import Share, split_budget
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.place_turns import PlaceTerms
from mint_engine.scheduling.request import Completion, Party, State
from mint_engine.scheduling.scheduler import Limits
from tests.engine.scheduled import LIMITS, TOTAL_PAGES, advance, completion, run, scheduler


class Arrivals(RuleBasedStateMachine):
    """Random arrivals of three adapters' requests, some with siblings, cancellations and steps."""

    windows: tuple[int | None, ...] = (None,)
    pages = TOTAL_PAGES

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler()
        self.generated: dict[Completion, int] = {}

    @initialize(terms=st.sampled_from([PlaceTerms(), PlaceTerms(stay=4, last_stay=10)]))
    def begin(self, terms: PlaceTerms) -> None:
        self.scheduler = scheduler(terms=terms, pages=self.pages, windows=self.windows)

    @rule(
        prompt=st.integers(1, 100),
        new=st.integers(1, 60),
        adapter=st.sampled_from(["", "a", "b"]),
        count=st.integers(1, 3),
        scored=st.booleans(),
        background=st.booleans(),
    )
    def arrive(self, prompt: int, new: int, adapter: str, count: int, scored: bool, background: bool) -> None:
        leader = completion(prompt, new, adapter, scored=scored, background=background)
        others = [completion(prompt, new, adapter, leader=leader, background=background) for _ in range(count - 1)]
        for each in (leader, *others):
            self.scheduler.add(each)
            self.generated[each] = 0

    @rule()
    def step(self) -> None:
        shares, _ = advance(self.scheduler)
        assert sum(share.length for share in shares) <= LIMITS.step_tokens
        assert all(share.length >= 1 for share in shares)
        assert all(self.slid(share) for share in shares)
        assert shares or not self.scheduler.busy, "a step always gets on"
        tenants = [each for each in self.scheduler.running if not each.request.background]
        decoding = [each for each in tenants if each.generated and each.pending == 1]
        assert {id(each) for each in decoding} <= {id(share.completion) for share in shares}, "decoding never waits"

    def slid(self, share: Share) -> bool:
        """Whether, once computed, a request keeps the pages still seen and refers to no others."""
        each = share.completion
        firsts = [first_seen(each.computed, window) for window in self.windows]
        return all(
            not any(table[:first]) and all(table[first:]) and len(table) * PAGE_TOKENS >= each.computed
            for table, first in zip(each.tables, firsts, strict=bool(each.tables))
        )

    @precondition(lambda self: self.scheduler.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.scheduler.live))
        available, owned = self.scheduler.prefix.available, list(victim.pages)
        alone = sum(self.scheduler.pages.references(page) == 1 for page in owned)
        self.scheduler.remove(victim)
        assert self.scheduler.prefix.available == available + alone, "its pages are available at once"

    @invariant()
    def books_balance(self) -> None:
        assert find_imbalance(self.scheduler) == ""

    @invariant()
    def no_token_is_lost(self) -> None:
        for each, before in self.generated.items():
            assert each.generated >= before
            self.generated[each] = each.generated

    def teardown(self) -> None:
        """Whatever has happened, all requests end: between two steps that generate a token there are never more steps
        than it takes to compute all pages."""
        since = 0
        while self.scheduler.busy:
            before = sum(each.generated for each in self.generated)
            advance(self.scheduler)
            generated = sum(each.generated for each in self.generated) > before
            since = 0 if generated else since + 1
            assert since <= self.pages * PAGE_TOKENS / (LIMITS.step_tokens - LIMITS.running) + 1
        assert self.scheduler.prefix.available == self.pages
        assert not self.scheduler.fairness.active
        assert all(each.state is State.ENDED for each in self.generated)


TestArrivals = Arrivals.TestCase
TestArrivals.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class SlidingArrivals(Arrivals):
    """The same when two of three groups of layers see only a window, with few pages more than one request needs."""

    windows = (None, 20, 7)
    pages = 18


TestSlidingArrivals = SlidingArrivals.TestCase
TestSlidingArrivals.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_request_takes_pages_as_it_grows() -> None:
    books = scheduler()
    each = completion(20, 30)
    books.add(each)
    advance(books)
    owned = []
    while books.busy:
        owned.append((len(each.tokens), len(each.pages)))
        advance(books)
    assert [pages for tokens, pages in owned if tokens in {21, 33, 34, 49}] == [2, 2, 3, 3]
    assert books.pages.free == TOTAL_PAGES - 3, "and the full ones are kept"


def test_a_request_has_no_more_pages_of_a_window_than_the_window_fills() -> None:
    """Three groups of layers, two of which see 40 tokens: a prompt of 300 and what follows it."""
    windows = (None, 40, 40)
    books = scheduler(Limits(running=4, step_tokens=32), pages=40, windows=windows)
    groups = LayerGroups(1, windows, ((0, 0), (1, 0), (2, 0)))
    first, again = completion(300, 100), completion(300, 5)
    books.add(first)
    while books.busy:
        advance(books)
        assert len(first.pages) <= groups.pages(len(first.tokens), 32) <= pages_for(len(first.tokens)) + 2 * 6
        if len(first.tokens) == 310:
            assert [len(table) - table.count(0) for table in first.tables] == [20, 4, 4]
    books.add(again)
    assert again.keys[:18] == first.keys[:18]
    advance(books)
    assert again.found == 0, "the pages of a window that ends there have gone to others long ago"


def test_a_prompt_is_found_again_by_the_window_at_its_end() -> None:
    books = scheduler(Limits(running=4, step_tokens=32), pages=60, windows=(None, 40, 40))
    for new, found in ((1, 0), (5, 288)):
        each = completion(300, new)
        books.add(each)
        run(books)
        assert each.found == found


def test_the_least_served_is_never_preempted() -> None:
    """Two requests grow beyond all pages: the later one gives way, and both end with all of their tokens."""
    books = scheduler(pages=6)
    first, second = completion(range(30), 60), completion(range(100, 130), 60)
    books.add(first)
    books.add(second)
    preempted = []
    while books.busy:
        advance(books)
        if second.state is State.WAITING and second.generated:
            preempted.append(second.generated)
        assert first.state is not State.WAITING
    assert preempted, "there was not room for both"
    assert (first.generated, second.generated) == (60, 60)


def test_of_two_adapters_the_one_served_most_gives_way() -> None:
    books = scheduler(pages=6)
    hot, cold = completion(range(40), 40, "hot"), completion(range(100, 130), 40, "cold")
    books.add(hot)
    books.add(cold)
    while hot.state is not State.WAITING or not hot.generated:
        advance(books)
        assert cold.state is State.RUNNING, "though it came later"
    run(books)


def test_a_preempted_request_comes_back_before_later_ones_of_its_adapter() -> None:
    books = scheduler(Limits(running=2, step_tokens=64), pages=6)
    first, second, third = completion(range(30), 60), completion(range(100, 130), 60), completion(range(200, 210), 2)
    for each in (first, second, third):
        books.add(each)
    while second.state is not State.WAITING or not second.generated:
        advance(books)
    while third.state is State.WAITING:
        advance(books)
        assert second.state is not State.WAITING or third.state is State.WAITING
    run(books)


def test_generated_tokens_become_prompt_and_are_charged_once() -> None:
    books = scheduler(pages=6)
    first, second = completion(range(30), 60, "a"), completion(range(100, 130), 60, "b")
    for each in (first, second):
        books.add(each)
    run(books)
    assert books.fairness._left[False] == {Party(name, False): 30 + 2 * 60 for name in "ab"}


def test_a_request_that_needs_many_pages_is_not_overtaken() -> None:
    """A request that must wait for pages holds the queue, so that small ones cannot starve it."""
    books = scheduler()
    first, large, small = completion(100, 30), completion(range(200, 300), 60), completion(1, 1)
    for each in (first, large, small):
        books.add(each)
    advance(books)
    assert [each.state for each in (first, large, small)] == [State.RUNNING, State.WAITING, State.WAITING]
    assert run(books)[0] is first


def test_a_page_is_left_for_each_that_runs() -> None:
    """A newcomer whose pages just fit still waits, or it would be preempted at once."""
    books = scheduler(pages=4)
    books.add(completion(range(32), 4))
    books.add(completion(range(100, 132), 4))
    advance(books)
    assert [len(books.running), len(books.waiting)] == [1, 1]


def test_prompts_share_what_decoding_leaves_the_least_served_first() -> None:
    decoding, long, short = completion(1, 5), completion(30, 5), completion(4, 5)
    served = {long: 1, short: 2}
    shares = split_budget([long, decoding, short], 20, lambda each: (served[each], 0))
    assert [(share.completion, share.length) for share in shares] == [(decoding, 1), (long, 19)]
    long.computed = 19
    shares = split_budget([long, decoding, short], 20, lambda each: (served[each], 0))
    assert [(share.completion, share.length, share.samples) for share in shares] == [
        (decoding, 1, True),
        (long, 11, True),
        (short, 4, True),
    ]
    served[long] = 3
    assert split_budget([long, decoding, short], 20, lambda each: (served[each], 0))[1].completion is short


def test_training_gets_a_share_of_the_rows_beside_tenants_and_all_where_there_are_none() -> None:
    tenants = [completion(1, 5) for _ in range(28)]
    rollouts = [completion(1, 5, background=True) for _ in range(9)]
    prompt = completion(40, 5, background=True)
    served = {each: number for number, each in enumerate(reversed(rollouts))} | {prompt: -1}

    def split(running: list[Completion]) -> list[tuple[Completion, int]]:
        shares = split_budget(running, 64, lambda each: (served.get(each, 0), 0))
        return [(share.completion, share.length) for share in shares]

    expected = [(each, 1) for each in tenants] + [(each, 1) for each in rollouts[:1:-1]]
    assert split([*rollouts, prompt, *tenants]) == expected, "seven, the least served ones"
    assert split([*rollouts, *tenants[:1]]) == [(tenants[0], 1), *((each, 1) for each in rollouts[:4:-1])]
    assert split([prompt, *tenants]) == [*((each, 1) for each in tenants), (prompt, 7)]
    assert split([*rollouts, prompt]) == [*((each, 1) for each in rollouts), (prompt, 40)]


def test_training_stands_still_beside_no_prompt_however_long() -> None:
    prompt, rollout = completion(1000, 5), completion(1, 5, background=True)
    shares = split_budget([prompt, rollout], 64, lambda each: (0, 0))
    assert [(share.completion, share.length) for share in shares] == [(prompt, 63), (rollout, 1)]


def test_limits_leave_room_for_prompts() -> None:
    with pytest.raises(ValueError, match="must exceed"):
        Limits(running=64, step_tokens=64)
