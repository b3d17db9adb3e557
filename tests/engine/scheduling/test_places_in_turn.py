"""Places in turn: long requests of one adapter do not keep those of others waiting, at a bounded cost."""

from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.layer_groups import PAGE_TOKENS
from mint_engine import metrics
from mint_engine.scheduling.budget import Share
from mint_engine.scheduling.place_turns import PlaceTerms, room_for_training
from mint_engine.scheduling.request import Completion, Party, State
from mint_engine.scheduling.scheduler import Limits, Scheduler
from tests.engine import scheduled
from tests.engine.scheduled import completion, scheduler

ENDLESS = 100_000
PLENTY = 100_000  # pages
TERMS = PlaceTerms()
SHORT = PlaceTerms(stay=4, last_stay=16)


def books_of(places: int, pages: int = PLENTY) -> Scheduler:
    return scheduler(Limits(running=places, waiting=1000, step_tokens=places + 64), pages, TERMS)


def advance(books: Scheduler) -> list[Share]:
    return scheduled.advance(books, check=False)[0]


def endless(books: Scheduler, count: int, adapter: str, *, background: bool = False) -> list[Completion]:
    """Add requests that outlast the test, each with a prompt of its own."""
    first = next(books._arrivals) * 1000
    asked = [
        completion(range(first + at * 10, first + at * 10 + 3), ENDLESS, adapter, background=background)
        for at in range(count)
    ]
    for each in asked:
        books.add(each)
    return asked


def places_of(books: Scheduler) -> dict[str, int]:
    return dict(Counter(each.request.adapter for each in books.running))


def steps(books: Scheduler, count: int) -> None:
    for _ in range(count):
        advance(books)


def until_true(books: Scheduler, true: Callable[[], bool]) -> None:
    """Step until `true()` holds."""
    for _ in range(3000):
        if true():
            return
        advance(books)
    raise AssertionError("it is not so after 3000 steps")


def until_placed(books: Scheduler, each: Completion, bound: int) -> int:
    """Step until a request has a place; return the number of steps."""
    for count in range(1, bound + 1):
        advance(books)
        if each.state is not State.WAITING:
            return count
    raise AssertionError(f"it has no place after {bound} steps")


def turns_taken() -> float:
    return float(metrics.PREEMPTED_FOR_TURN._value.get())


def test_a_newcomer_waits_no_longer_than_places_are_kept() -> None:
    """However long the 64 requests that hold all places."""
    books = books_of(64)
    endless(books, 64, "hot")
    steps(books, 3)
    [newcomer] = endless(books, 1, "cold")
    assert until_placed(books, newcomer, TERMS.stay + 10) > 1, "what was begun is kept for a while"
    [another] = endless(books, 1, "mild")
    assert until_placed(books, another, 1) == 1


def test_the_latest_request_gives_way_and_comes_back_first() -> None:
    books = books_of(4)
    hot = endless(books, 6, "hot")
    steps(books, TERMS.stay + 2)
    cold = completion(3, 5, "cold")
    books.add(cold)
    advance(books)
    assert [each.state for each in hot[2:]] == [State.RUNNING, State.WAITING, State.WAITING, State.WAITING]
    generated = hot[3].generated
    assert generated > 100
    until_true(books, lambda: cold.state is State.ENDED)
    advance(books)
    assert [each.state for each in hot[2:]] == [State.RUNNING, State.RUNNING, State.WAITING, State.WAITING]
    assert hot[3].generated > generated


def test_requests_do_not_give_way_to_their_own_adapter() -> None:
    books, before = books_of(4), turns_taken()
    endless(books, 20, "only")
    steps(books, 3 * TERMS.last_stay)
    assert turns_taken() == before


def test_two_adapters_come_to_have_as_many_places_and_then_keep_them() -> None:
    books = books_of(16)
    endless(books, 30, "a")
    steps(books, 500)
    endless(books, 30, "b")
    steps(books, TERMS.stay + 10)
    assert places_of(books) == {"a": 8, "b": 8}
    before = turns_taken()
    steps(books, 2000)
    assert turns_taken() == before, "nothing goes to and fro"


def test_prompts_still_being_computed_give_way_at_once() -> None:
    """The prompts in all places will take many steps: a newcomer need not wait for them."""
    books = books_of(4)
    for at in range(4):
        books.add(completion(range(at * 1000, at * 1000 + 900), ENDLESS, "hot"))
    advance(books)
    [cold] = endless(books, 1, "cold")
    steps(books, 2)
    assert cold.state is State.RUNNING
    assert cold.generated == 1


def test_more_adapters_than_places_take_turns() -> None:
    """Each gets a place again and again, and keeps it for a good while."""
    books = books_of(3)
    asked = [endless(books, 1, name)[0] for name in "abcde"]
    had: Counter[Completion] = Counter()
    before = turns_taken()
    for _ in range(20 * TERMS.last_stay):
        advance(books)
        had.update(books.running)
    assert all(0.5 < had[each] / had.total() * 5 < 1.5 for each in asked)
    assert turns_taken() - before <= 3 * 20 + 3


def test_pages_are_made_room_for_too() -> None:
    """Places are free, but a newcomer's prompt needs more pages than small requests leave: some of these give way."""
    books = books_of(8, pages=80)
    for at in range(6):
        books.add(completion(range(at * 1000, at * 1000 + 30), 400, "hot"))
    steps(books, 60)
    large = completion(range(7000, 7000 + 45 * PAGE_TOKENS), 5, "cold")
    books.add(large)
    assert until_placed(books, large, TERMS.stay) > 1
    assert len(books.running) > 2


def test_little_is_computed_twice_while_pages_last() -> None:
    books, before, others, computed = books_of(4), turns_taken(), 0, 0
    endless(books, 40, "a")
    for at in range(4000):
        if at % 50 == 0:
            others += 1
            books.add(completion(3, 20, f"other{at}"))
        computed += sum(share.length for share in advance(books))
    assert len(books.fairness.active) == 1
    assert turns_taken() - before > 20
    once = others * (3 + 19) + sum(max(each.computed, each.reached) for each in books.live)
    assert 0 < computed - once < computed / 16


def test_a_request_that_lost_its_pages_keeps_its_place_until_it_has_generated_as_much_again() -> None:
    books = books_of(1, pages=200)
    [hot] = endless(books, 1, "hot")
    steps(books, 1200)
    large = completion(range(5000, 5000 + 190 * PAGE_TOKENS), 1, "cold")
    books.add(large)
    until_true(books, lambda: large.state is State.ENDED)
    [late] = endless(books, 1, "late")
    until_true(books, lambda: hot.state is State.RUNNING)
    again, start = hot.reached - hot.found, hot.generated
    assert again > TERMS.last_stay
    until_true(books, lambda: late.state is State.RUNNING)
    assert hot.generated - start == again


def test_training_that_has_all_places_leaves_tenants_four_fifths() -> None:
    books = books_of(64)
    endless(books, 60, "policy", background=True)
    steps(books, 2 * TERMS.stay)
    endless(books, 64, "tenant")
    steps(books, 3 * TERMS.stay)
    assert places_of(books) == {"policy": 12, "tenant": 52}
    assert room_for_training(52) >= 12
    before = turns_taken()
    steps(books, 1000)
    assert turns_taken() == before


def test_training_is_not_starved_by_tenants() -> None:
    books = books_of(20)
    endless(books, 40, "tenant")
    steps(books, TERMS.stay)
    endless(books, 8, "policy", background=True)
    steps(books, 40 * TERMS.stay)
    assert places_of(books) == {"tenant": 16, "policy": 4}


def test_training_has_its_turn_among_more_tenants_than_places() -> None:
    books = books_of(1)
    asked = [endless(books, 1, name)[0] for name in "abc"] + endless(books, 1, "policy", background=True)
    steps(books, 6 * TERMS.last_stay)
    assert all(each.generated > TERMS.stay for each in asked)


def test_an_adapters_tenants_do_not_wait_for_its_own_training() -> None:
    books = books_of(8)
    endless(books, 30, "both", background=True)
    steps(books, 2 * TERMS.stay)
    asked = endless(books, 3, "both")
    steps(books, 2)
    assert all(each.state is State.RUNNING for each in asked)


def test_training_gives_its_pages_to_tenants() -> None:
    """Though it has been served less, since it gets few rows beside them."""
    books = books_of(20, pages=160)
    rollouts = endless(books, 8, "policy", background=True)
    tenants = [completion(range(at * 1000, at * 1000 + 20), 160, "tenant") for at in range(1, 13)]
    for each in tenants:
        books.add(each)
    until_true(books, lambda: any(each.generated and each.state is State.WAITING for each in rollouts))
    assert books.fairness.service(Party("policy", True)) < books.fairness.service(Party("tenant", False))
    while any(each.state is not State.ENDED for each in tenants):
        advance(books)
        assert all(each.state is not State.WAITING for each in tenants)


def test_training_goes_on_however_few_pages_tenants_leave() -> None:
    books = books_of(8, pages=60)
    rollouts = [completion(range(at * 1000, at * 1000 + 20), 200, "policy", background=True) for at in range(1, 5)]
    for each in rollouts:
        books.add(each)
    for at in range(200_000):
        if len(books.live) < 16:
            books.add(completion(range(at * 1000, at * 1000 + 100), 200, f"tenant{at % 3}"))
        advance(books)
        if all(each.state is State.ENDED for each in rollouts):
            return
        assert at < 200 * len(rollouts) * len(rollouts), [each.generated for each in rollouts]


PARTIES = st.lists(
    st.tuples(
        st.integers(0, 80),  # the step at which it arrives
        st.integers(1, 12),  # requests
        st.integers(1, 60),  # tokens of their prompts
        st.sampled_from([1, 3, 20, 400]),  # new tokens of each
        st.booleans(),  # training
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25, deadline=None)
@given(asked=PARTIES, places=st.integers(1, 4))
def test_every_party_that_waits_gets_a_place_within_the_bound(
    asked: list[tuple[int, int, int, int, bool]], places: int
) -> None:
    """Behind p others for n places, at most (p // n + 2) `last_stay` steps and the time of the prompts. Training that
    waits beside tenants has a fifth of the places, at least one."""
    step_tokens = places + 60
    books = scheduler(Limits(running=places, waiting=1000, step_tokens=step_tokens), 600, SHORT)
    waited: Counter[Party] = Counter()
    for step in range(400):
        for number, (at, count, prompt, new, training) in enumerate(asked):
            if at == step:
                for each in range(count):
                    start = (number * 100 + each) * 100
                    books.add(completion(range(start, start + prompt), new, f"{number}", background=training))
        if step > 80 and not len(books.waiting):
            return
        computed = {share.completion for share in advance(books)}
        having = {each.request.party for each in {*books.running, *computed}}
        without = {each.request.party for each in books.waiting} - having
        waited = Counter({party: waited[party] + 1 for party in without})
        for party in without:
            parties = len({*(each.request.party for each in books.waiting), *having})
            own = max(1, places // 5) if any(not each.request.background for each in books.live) else places
            n = own if party.background else places
            rows = 4 if party.background else step_tokens - places
            prompts = len(asked) * (60 + PAGE_TOKENS) * places // rows
            assert waited[party] <= (parties // n + 2) * (SHORT.last_stay + PAGE_TOKENS) + prompts


@settings(max_examples=25, deadline=None)
@given(
    rollouts=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    tenants=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    late=st.integers(0, 200),
    pages=st.integers(26, 80),
)
def test_no_tenant_is_paused_for_pages_while_several_rollouts_keep_theirs(
    rollouts: list[int], tenants: list[int], late: int, pages: int
) -> None:
    """Requests of these prompts, each for 300 new tokens; tenants come after `late` steps."""
    books = books_of(20, pages)
    for at, prompt in enumerate(rollouts):
        books.add(completion(range(at * 1000, at * 1000 + prompt), 300, "policy", background=True))
    steps(books, late)
    for at, prompt in enumerate(tenants, 100):
        books.add(completion(range(at * 1000, at * 1000 + prompt), 300, "tenant"))
    while any(not each.request.background for each in books.live):
        before, turns = list(books.running), turns_taken()
        advance(books)
        lost = [each for each in before if each.state is State.WAITING and not each.request.background]
        if lost and turns_taken() == turns:
            kept = [each for each in before if each in books.running and each.placed_at < books._steps]
            assert sum(each.request.background for each in kept) <= 1
