"""Fair shares between clients: one gets no more by asking for more adapters, which share what is the client's."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import Overloaded
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_contracts.sampling_pb2 import GenerateRequest, SamplingParams
from mint_engine.build import build
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT
from mint_engine.scheduling.place_turns import PlaceTerms
from mint_engine.scheduling.request import Completion, Party, Request, Sharer, State
from mint_engine.scheduling.scheduler import Limits, Scheduler
from mint_engine.scheduling.stepper import Stepper
from tests.engine.running import collect, running, settings_for
from tests.engine.scheduled import advance, completion, scheduler
from tests.engine.steps import Gate

ENDLESS, PLENTY = 100_000, 100_000
TERMS, SHORT = PlaceTerms(), PlaceTerms(stay=4, last_stay=16)


def party(client: str, adapter: str = "a") -> Party:
    return Party(adapter, False, client)


def asked(books: Scheduler, client: str, adapters: Iterable[str], new: int = ENDLESS) -> list[Completion]:
    """Add a client's request for each of the adapters, with a prompt of its own."""
    made = []
    for adapter in adapters:
        first = next(books._arrivals) * 10
        made.append(completion(range(first, first + 3), new, adapter, client=client))
        books.add(made[-1])
    return made


def steps(books: Scheduler, count: int) -> None:
    for _ in range(count):
        advance(books, check=False)


def places(books: Scheduler, *, by: str) -> dict[str, int]:
    return dict(Counter(str(getattr(each.request, by)) for each in books.running))


def test_a_client_gets_no_more_places_by_asking_for_a_hundred_adapters() -> None:
    books = scheduler(Limits(running=16, waiting=1000, step_tokens=80), PLENTY, TERMS)
    asked(books, "many", map(str, range(100)))
    steps(books, 500)
    assert places(books, by="client") == {"many": 16}
    asked(books, "one", ["0"] * 30)
    steps(books, TERMS.stay + 10)
    had = Counter[str]()
    for _ in range(2000):
        shares, _ = advance(books, check=False)
        assert places(books, by="client") == {"many": 8, "one": 8}
        had.update(share.completion.request.client for share in shares)
    assert abs(had["many"] - had["one"]) <= 0.01 * had.total()


def test_free_places_are_shared_before_anything_has_been_computed() -> None:
    books = scheduler(Limits(running=16, waiting=1000, step_tokens=80), PLENTY, TERMS)
    asked(books, "many", map(str, range(30)))
    asked(books, "one", ["0"] * 30)
    steps(books, 1)
    assert places(books, by="client") == {"many": 8, "one": 8}


def test_a_clients_adapters_share_its_places_and_keep_them() -> None:
    books = scheduler(Limits(running=16, waiting=1000, step_tokens=80), PLENTY, TERMS)
    asked(books, "x", ["a"] * 30)
    asked(books, "y", ["c"] * 30)
    steps(books, 500)
    asked(books, "x", ["b"] * 30)
    steps(books, TERMS.stay + 10)
    assert places(books, by="adapter") == {"a": 4, "b": 4, "c": 8}
    before = set(books.running)
    steps(books, 2000)
    assert set(books.running) == before, "nothing goes to and fro"


def test_adapters_of_a_client_take_turns_in_its_places_however_many_other_clients_there_are() -> None:
    """Each client has one place, and each adapter of the first has a request that would keep that for good."""
    books = scheduler(Limits(running=8, waiting=1000, step_tokens=80), PLENTY, TERMS)
    own = asked(books, "first", "abcd")
    for other in range(7):
        asked(books, f"other{other}", ["a"] * 3)
    had = Counter[Completion]()
    for _ in range(8 * TERMS.last_stay):
        advance(books, check=False)
        had.update(each for each in books.running if each.request.client == "first")
    assert all(0.5 < had[each] / had.total() * 4 < 1.5 for each in own)


def test_adapters_get_their_turn_in_places_that_another_client_takes_back_at_once() -> None:
    """A client that has just lost its only place asks for one in the step in which the other gets a second."""
    terms = PlaceTerms(stay=8, last_stay=32)
    books = scheduler(Limits(running=2, waiting=1000, step_tokens=40), PLENTY, terms)
    left, done, seen = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[str]()
    for step in range(2000):
        for client, adapter, new in [("many", each, 22) for each in "abcd"] + [("one", "x", 21)]:
            while left[client, adapter] < 3:
                books.add(completion(5, new + done[client, adapter] % 3, adapter, client=client))
                left[client, adapter] += 1
        shares, ended = advance(books, check=False)
        left.subtract((each.request.client, each.request.adapter) for each in ended)
        done.update((each.request.client, each.request.adapter) for each in ended)
        seen |= Counter({share.completion.request.adapter: step for share in shares})
        assert all(step - seen[each] <= (3 + 2) * terms.last_stay for each in "abcd")


def test_a_newcomer_client_waits_no_longer_than_places_are_kept_behind_a_thousand_requests() -> None:
    books = scheduler(Limits(running=16, waiting=2000, step_tokens=80), PLENTY, TERMS)
    asked(books, "many", [str(at % 300) for at in range(1000)])
    steps(books, 3)
    [late] = asked(books, "one", ["0"])
    steps(books, TERMS.stay + 2)
    assert late.state is State.RUNNING


def test_of_several_places_that_give_way_at_once_no_client_gives_more_than_others() -> None:
    """A large prompt needs the pages of three of the requests that run."""
    books = scheduler(Limits(running=9, waiting=1000, step_tokens=80), 80, TERMS)
    for client in "xy":
        asked(books, client, "abcd")
    steps(books, TERMS.stay + 2)
    assert books.prefix.available == 8
    large = completion(range(90_000, 90_000 + 29 * PAGE_TOKENS), 1, client="z")
    books.add(large)
    steps(books, 1)
    assert large.state is State.RUNNING
    assert sorted(places(books, by="client").values()) == [1, 2, 3]


def test_requests_for_an_adapter_keep_their_order_within_a_client() -> None:
    books = scheduler(Limits(running=1, step_tokens=64))
    mine, other = asked(books, "x", "aaab", new=4), asked(books, "y", "a", new=4)
    ended = list[Completion]()
    while books.busy:
        ended += advance(books)[1]
    assert ended == [mine[0], other[0], mine[3], mine[1], mine[2]]


WORK = st.lists(
    st.tuples(
        st.integers(0, 60),  # the step at which it arrives
        st.sampled_from("abcd"),
        st.integers(1, 60),  # tokens of its prompt
        st.sampled_from([1, 3, 20, 60]),  # new tokens
    ),
    min_size=1,
    max_size=30,
)


def played(work: list[tuple[int, str, int, int]], pages: int, client: str) -> Iterator[list[tuple[int, int]]]:
    """Schedule a client's requests beside one that never ends; yield the shares of each step, by arrival."""
    books = scheduler(Limits(running=3, waiting=100, step_tokens=24), pages, SHORT)
    asked(books, client, "z", new=2 * pages)
    for step in range(200):
        for at, adapter, prompt, new in work:
            if at == step:
                books.add(completion(range(prompt), new, adapter, client=client))
        yield [(share.completion.arrival, share.length) for share in advance(books)[0]]


@settings(max_examples=40, deadline=None)
@given(work=WORK, pages=st.integers(24, 60))
def test_a_client_alone_is_scheduled_as_if_it_had_no_name(work: list[tuple[int, str, int, int]], pages: int) -> None:
    """Its adapters share as adapters do where clients cannot be told apart; and the same is done each time."""
    expected = list(played(work, pages, ""))
    assert list(played(work, pages, "x")) == expected
    assert list(played(work, pages, "")) == expected


LOADS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(1, 40)),  # adapter, prompt, new tokens
    min_size=4,
    max_size=50,
)


@settings(max_examples=60, deadline=None)
@given(loads=st.tuples(LOADS, LOADS), spread=st.integers(1, 6), late=st.integers(0, 60))
def test_clients_and_adapters_that_always_have_something_waiting_get_as_much_as_each_other(
    loads: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]], spread: int, late: int
) -> None:
    """The difference stays within twice the largest batch that can run (the paper's bound), whenever they arrive and
    over however many adapters either spreads; and within a client, between its adapters. No place is left unused."""
    books = scheduler(Limits(running=4, waiting=100, step_tokens=40), PLENTY)
    bound, service = 2 * 4 * (60 + COMPLETION_WEIGHT * 40), books.fairness.service
    since: dict[tuple[Sharer, Sharer], int] = {}  # the differences when both of a pair began to have some waiting
    for step in itertools.count():
        for client, load, begins, adapters in (("x", loads[0], 0, spread), ("y", loads[1], late, 1)):
            for adapter, prompt, new in load if step == begins else ():
                books.add(completion(prompt, new, str(adapter % adapters), client=client))
        if not books.busy and step > late:
            return
        _, ended = advance(books, check=False)
        assert len(books.running) + len(ended) == 4 or not len(books.waiting)
        parties = list({each.request.party for each in books.waiting})
        pairs: list[tuple[Sharer, Sharer]] = list(itertools.permutations({each.client for each in parties}, 2))
        pairs += [(one, other) for one, other in itertools.permutations(parties, 2) if one.client == other.client]
        since = {pair: since.get(pair, service(pair[0]) - service(pair[1])) for pair in pairs}
        for (one, other), before in since.items():
            assert service(one) - service(other) - before <= bound


@settings(max_examples=25, deadline=None)
@given(
    work=st.lists(
        st.tuples(
            st.integers(0, 80),  # the step at which it arrives
            st.sampled_from("vwxyz"),
            st.sampled_from("abc"),
            st.integers(1, 6),  # requests
            st.integers(1, 60),  # tokens of their prompts
            st.sampled_from([1, 20, 400]),  # new tokens of each
        ),
        min_size=1,
        max_size=8,
    ),
    count=st.integers(1, 4),
)
def test_every_client_that_waits_gets_a_place_within_the_bound_and_its_adapters_in_turn(
    work: list[tuple[int, str, str, int, int, int]], count: int
) -> None:
    """Behind p other clients for n places, a client waits at most (p // n + 2) `last_stay` steps and the time of the
    prompts; each time, the adapter gets its place that has waited longest of its own."""
    books = scheduler(Limits(running=count, waiting=1000, step_tokens=count + 60), 600, SHORT)
    waited = Counter[Sharer]()
    for step in range(500):
        for number, (at, client, adapter, requests, prompt, new) in enumerate(work):
            for each in range(requests if at == step else 0):
                start = (number * 100 + each) * 100
                books.add(completion(range(start, start + prompt), new, adapter, client=client))
        if step > 80 and not len(books.waiting):
            return
        computed = {share.completion for share in advance(books, check=False)[0]}
        having = {sharer for each in {*books.running, *computed} for sharer in each.request.party.path}
        without = {sharer for each in books.waiting for sharer in each.request.party.path} - having
        waited = Counter({sharer: waited[sharer] + 1 for sharer in without})
        clients = {each.request.client for each in {*books.live, *computed}}
        prompts = len(work) * (60 + PAGE_TOKENS) * count // 60
        bound = (len(clients) // count + 2) * (SHORT.last_stay + PAGE_TOKENS) + prompts
        for sharer in without:
            turns = 4 if isinstance(sharer, Party) else 1  # of each of three adapters, and the one in progress
            assert waited[sharer] <= turns * bound


# Training, the queue's room, and where the name comes from


def test_training_has_its_part_beside_clients_as_beside_adapters() -> None:
    """A fifth of the places beside tenants that fill the others, and no client waits for it."""
    books = scheduler(Limits(running=20, waiting=1000, step_tokens=84), PLENTY, TERMS)
    for at in range(8):
        books.add(completion(range(at * 10, at * 10 + 3), ENDLESS, "policy", background=True))
    asked(books, "x", map(str, range(40)))
    steps(books, 2 * TERMS.stay)
    asked(books, "y", ["0"] * 40)
    steps(books, 2 * TERMS.stay)
    assert places(books, by="client") == {"": 4, "x": 8, "y": 8}


def test_a_client_cannot_take_all_the_room_of_the_queue_nor_one_of_its_adapters_all_of_the_clients(
    base: Path,
) -> None:
    _, _, generation = build(settings_for(base), base, Limits(running=2, waiting=98, step_tokens=128))
    stepper, sampling = Stepper(generation, lambda deliver: None), Sampling(max_tokens=1, seed=0)  # does not start

    def ask_until_refused(client: str, adapters: Iterable[str]) -> tuple[int, str]:
        """Return how many requests are taken in, and why no more are."""
        for count, adapter in enumerate(adapters):
            try:
                stepper.submit(Request((5, 6), sampling, adapter, client=client), lambda event: None)
            except Overloaded as refusal:
                return count, str(refusal)
        raise AssertionError

    count, why = ask_until_refused("x", itertools.repeat("a"))
    assert count == 64
    assert "64 of them with your key for a;" in why
    count, why = ask_until_refused("x", map(str, itertools.count()))
    assert count == 16
    assert "0 of them with your key for 16 and 80 for other adapters;" in why
    count, why = ask_until_refused("y", map(str, itertools.count()))
    assert count == 16
    count, why = ask_until_refused("", itertools.repeat("a"))
    assert count == 4
    assert "4 of them for a;" in why


async def test_a_request_counts_for_the_client_that_its_gateway_names(base: Path) -> None:
    async with running(base) as engine:
        gate = Gate(engine)
        request = GenerateRequest(text="x", client="x", sampling=SamplingParams(max_tokens=2))
        asking = asyncio.create_task(collect(engine, request))
        await gate.closed()
        assert engine.server.generation.scheduler.fairness.active == {"x": 1, party("x", ""): 1}
        gate.open()
        await asking
