"""Fair share between parties: the least served goes first, and none starves another."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_engine.place_counter import PlaceCounter
from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Party, State
from mint_engine.scheduling.scheduler import Limits
from tests.engine.scheduled import advance, completion, run, scheduler


def tenants(adapter: str) -> Party:
    return Party(adapter, False)


def served(**service: int) -> FairShare:
    """A FairShare of active adapters' tenants with the given amounts of service."""
    fair = FairShare()
    for adapter in service:
        fair.enter(tenants(adapter))
    for adapter, amount in service.items():
        fair.charge(tenants(adapter), amount)
    return fair


def test_the_least_served_goes_first_and_equals_by_arrival() -> None:
    books = scheduler(Limits(running=1, step_tokens=64))
    asked = [completion(10, 5, name) for name in ("hot", "hot", "hot", "cold", "mild")]
    for each in asked:
        books.add(each)
    assert [each.request.adapter for each in run(books)] == ["hot", "cold", "mild", "hot", "hot"]


@pytest.mark.parametrize("adapter", ["", "shared"])
def test_clients_of_one_adapter_or_the_bare_base_take_turns(adapter: str) -> None:
    books = scheduler(Limits(running=1, step_tokens=64))
    for client in ("hot", "hot", "hot", "cold"):
        books.add(completion(10, 5, adapter, client=client))
    assert [each.request.client for each in run(books)] == ["hot", "cold", "hot", "hot"]


def test_a_newcomer_starts_with_the_least_of_the_active() -> None:
    """It gets the next turn, but not every turn until it has caught up with the service of those before it."""
    fair = served(a=100, b=70)
    fair.enter(tenants("c"))
    assert fair.service(tenants("c")) == 70


def test_leaving_neither_forgives_nor_saves() -> None:
    fair = served(a=100, b=70)
    fair.leave(tenants("a"))
    fair.enter(tenants("a"))
    assert fair.service(tenants("a")) == 100, "what it had before it left counts"
    fair.leave(tenants("b"))
    fair.charge(tenants("a"), 50)
    fair.enter(tenants("b"))
    assert fair.service(tenants("b")) == 150, "what others had meanwhile counts"
    fair.leave(tenants("a"))
    fair.leave(tenants("b"))
    fair.enter(tenants("c"))
    assert fair.service(tenants("c")) == 150, "also after nobody was there"


def test_what_an_adapters_training_gets_is_not_charged_to_its_tenants() -> None:
    books = scheduler(Limits(running=10, step_tokens=64), pages=1000)
    for at, name in enumerate("ab"):
        books.add(completion(range(at * 100, at * 100 + 10), 1000, name))
    for at in range(10, 16):
        books.add(completion(range(at * 100, at * 100 + 10), 1000, "a", background=True))
    for _ in range(100):
        advance(books)
    assert books.fairness.service(Party("a", True)) > 100
    asked = [completion(range(at * 1000, at * 1000 + 300), 1, name) for at, name in enumerate("ab", 10)]
    for each in asked:
        books.add(each)
    advance(books)
    assert asked[0].computed > asked[1].computed, "it came first, and both had been served equally"


def test_a_newcomer_shares_evenly_with_a_tenant_that_ran_beside_training() -> None:
    """Training gets few rows beside tenants, so its counter stays far behind theirs."""
    books = scheduler(Limits(running=8, step_tokens=64), pages=1000)
    numbers = itertools.count()

    def had(steps: int, **parties: bool) -> dict[str, int]:
        """Advance with six requests of each party in flight, and return the tokens computed by adapter."""
        tokens = dict.fromkeys(parties, 0)
        for _ in range(steps):
            for name, background in parties.items():
                for _ in range(6 - books.fairness.active.get(Party(name, background), 0)):
                    prompt = range(at := next(numbers) * 100, at + 20)
                    books.add(completion(prompt, 20, name, background=background))
            for share in advance(books, check=False)[0]:
                tokens[share.completion.request.adapter] += share.length
        return tokens

    had(1500, a=False, policy=True)
    tokens = had(500, a=False, new=False, policy=True)
    assert abs(tokens["a"] - tokens["new"]) < 0.1 * tokens["a"]


def test_a_newcomer_after_the_last_tenant_left_starts_with_what_that_had() -> None:
    fair = served(a=100)
    policy = Party("policy", True)
    fair.enter(policy)
    fair.charge(tenants("a"), 900)
    fair.leave(tenants("a"))
    fair.enter(tenants("b"))
    assert fair.service(tenants("b")) == 1000, "training's 100 are not the measure"
    fair.leave(tenants("b"))
    fair.charge(policy, 5000)
    fair.enter(tenants("c"))
    assert fair.service(tenants("c")) == 5100, "nor does training pay for what it had while it was alone"
    fair.leave(tenants("c"))
    fair.charge(policy, 5000)
    fair.leave(policy)
    fair.enter(tenants("d"))
    assert fair.service(tenants("d")) == 10100, "also if it has no request at the moment"


def test_counters_of_tenants_outlive_those_of_any_number_of_trained_adapters() -> None:
    fair = served(a=100, b=70)
    fair.leave(tenants("a"))
    for at in range(5000):
        fair.enter(Party(str(at), True))
        fair.leave(Party(str(at), True))
    fair.enter(tenants("a"))
    assert fair.service(tenants("a")) == 100


def test_counters_of_parties_that_left_are_bounded() -> None:
    fair = FairShare()
    for at in range(5000):
        fair.enter(tenants(str(at)))
        fair.leave(tenants(str(at)))
    assert len(fair._left[False]) <= 1024
    assert not fair._service


@settings(max_examples=60, deadline=None)
@given(
    hot=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=10, max_size=60),
    cold=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=8),
    late=st.integers(0, 60),
)
def test_a_hot_adapter_does_not_starve_another(
    hot: list[tuple[int, int]], cold: list[tuple[int, int]], late: int
) -> None:
    """However many requests one adapter has queued, another's get as much service while both have some waiting: the
    difference stays within twice the largest batch that can run (the paper's bound), whenever they arrive."""
    books = scheduler(Limits(running=4, waiting=100, step_tokens=40), pages=24)
    for prompt, new in hot:
        books.add(completion(prompt, new, "hot"))
    for _ in range(late):
        if books.busy:
            advance(books)
    hots, colds = tenants("hot"), tenants("cold")
    start = books.fairness.service(hots) if hots in books.fairness.active else 0
    came = [completion(prompt, new, "cold") for prompt, new in cold]
    for each in came:
        books.add(each)
    base = books.fairness.service(colds)
    bound = 2 * 4 * (60 + 2 * 40)
    while books.busy and any(each.state is State.WAITING for each in came):
        advance(books)
        active = books.fairness.active
        if {hots, colds} <= set(active) and any(each.state is State.WAITING for each in came):
            had = books.fairness.service(hots) - start, books.fairness.service(colds) - base
            assert had[0] - had[1] <= bound
    run(books)


def test_prompts_of_the_hot_adapter_yield_the_budget() -> None:
    """A newcomer's short prompt is computed beside the chunks of longer, earlier prompts rather than after them."""
    books = scheduler(Limits(running=4, step_tokens=20), pages=40)
    for at in range(2):
        books.add(completion(range(at * 200, at * 200 + 150), 5, "hot"))
    advance(books)
    cold = completion(range(900, 910), 1, "cold")
    books.add(cold)
    advance(books)  # before this step both had been served equally
    advance(books)
    assert cold.state is State.ENDED


def test_a_prompt_comes_to_its_end_beside_newcomers_without_end() -> None:
    """Each newcomer goes first because it has been served less, and another is there when it ends."""
    books = scheduler(Limits(running=4, waiting=8, step_tokens=24), pages=60)
    long = completion(range(100_000, 100_400), 1, "long")
    books.add(long)
    newcomers = itertools.count()
    for _ in range(8 * 400 // 24 + 40):
        while len(books.live) < 6:
            at = next(newcomers)
            books.add(completion(range(at * 100, at * 100 + 90), 1, f"one-shot/{at}"))
        if long in advance(books)[1]:
            return
    raise AssertionError(f"{long.computed} of its 400 tokens were computed beside {next(newcomers)} newcomers")


@given(places=st.integers(1, 400), asks=st.lists(st.sampled_from("abcdefgh"), max_size=500))
def test_one_adapter_cannot_take_every_place_of_the_queue(places: int, asks: list[str]) -> None:
    counter = PlaceCounter[str](places)
    for name in asks:
        if counter.has_room(name, 1):
            counter.enter(name, 1)
    assert counter.total <= places
    if places >= 5:
        hog = PlaceCounter[str](places)
        while hog.has_room("hog", 1):
            hog.enter("hog", 1)
        assert 0.7 * places <= hog.total < places, "it gets most, and not all"
        for newcomer in "bc":
            assert hog.has_room(newcomer, 1) or hog.total == places
            hog.enter(newcomer, 1)


def test_room_is_for_all_siblings_or_none() -> None:
    counter = PlaceCounter[str](20)
    assert counter.has_room("a", 16)
    counter.enter("a", 16)
    assert not counter.has_room("a", 1)
    assert counter.has_room("b", 4)
    assert not counter.has_room("b", 5)
    for _ in range(16):
        counter.leave("a")
    assert (counter.total, counter.of("a")) == (0, 0)
