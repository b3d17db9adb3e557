"""Counters of clients and of each one's parties, and whose request is next: also by a naive reference."""

import itertools
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Completion, Party
from mint_engine.scheduling.waiting import Waiting
from tests.engine.scheduled import completion


def party(client: str, adapter: str = "a") -> Party:
    return Party(adapter, False, client)


def entered(*parties: Party) -> FairShare:
    fair = FairShare()
    for each in parties:
        fair.enter(each)
    return fair


def test_each_client_pays_for_what_it_asked_of_an_adapter_that_both_ask() -> None:
    fair = entered(party("x"), party("y"), party("x", "b"))
    fair.charge(party("x"), 7)
    assert [fair.service(each) for each in ("x", party("x"), party("x", "b"), "y", party("y"))] == [7, 7, 0, 0, 0]
    ranked = sorted([party("x"), party("x", "b"), party("y")], key=fair.rank)
    assert ranked == [party("y"), party("x", "b"), party("x")], "the least served client first, whatever its adapters"


def test_a_client_that_was_idle_gets_no_credit_and_owes_what_it_owed_whichever_adapter_it_asks_for() -> None:
    fair = entered(party("x"), party("y"))
    fair.charge(party("x"), 100)
    fair.charge(party("y"), 60)
    fair.leave(party("x"))
    fair.enter(party("x", "another"))
    assert fair.service("x") == 100
    fair.leave(party("y"))
    fair.charge(party("x", "another"), 500)
    fair.enter(party("y", "another"))
    fair.enter(party("z"))
    assert [fair.service(each) for each in "yz"] == [600, 600]


def test_an_adapter_that_was_idle_gets_no_credit_within_its_client() -> None:
    fair = entered(party("x", "a"), party("x", "b"), party("y"))
    fair.charge(party("x", "a"), 100)
    fair.leave(party("x", "a"))
    fair.charge(party("x", "b"), 30)
    fair.enter(party("x", "new"))
    fair.enter(party("x", "a"))
    assert [fair.service(party("x", each)) for each in ("a", "b", "new")] == [100, 30, 30]
    for each in ("a", "b", "new"):
        fair.leave(party("x", each))
    fair.enter(party("x", "b"))
    fair.enter(party("x", "a"))
    assert fair.service("x") == 130
    assert fair.service(party("x", "a")) == fair.service(party("x", "b")), "all of them were idle"


def test_counters_of_a_client_that_asks_for_any_number_of_adapters_are_bounded() -> None:
    fair = entered(party("x", "stays"), party("y"))
    fair.charge(party("y"), 100)
    fair.leave(party("y"))
    for at in range(5000):
        fair.enter(party("x", str(at)))
        fair.leave(party("x", str(at)))
    assert sum(map(len, fair._left.values())) < 200
    fair.enter(party("y"))
    assert fair.service("y") == 100, "nor do they displace what another client owes"
    for each in (party("x", "stays"), party("y")):
        fair.leave(each)
    assert not fair._service
    assert not any(fair._active.values())
    assert set(fair._left) == {False, True}


@dataclass
class Naive:
    """What `FairShare` and `Waiting` do, from nothing but lists of all that live and of all that ever were."""

    live: list[tuple[str, str, int]] = field(default_factory=list)  # client, adapter, arrival
    waiting: list[tuple[str, str, int]] = field(default_factory=list)
    service: dict[tuple[str, ...], int] = field(default_factory=dict)  # by client, and by client and adapter
    ended: list[tuple[str, ...]] = field(default_factory=list)  # whose last request ended, in that order

    def active(self) -> set[tuple[str, ...]]:
        return {(client,) for client, _, _ in self.live} | {(client, adapter) for client, adapter, _ in self.live}

    def add(self, client: str, adapter: str, arrival: int) -> None:
        for key in ((client,), (client, adapter)):
            active = self.active()
            beside = [each for each in active if each[:-1] == key[:-1] and len(each) == len(key)]
            last = [each for each in self.ended if len(each) == 1][-1:] if len(key) == 1 else []
            if key not in active:
                floor = min((self.service[each] for each in beside or last), default=0)
                self.service[key] = max(self.service.get(key, 0), floor)
        self.live.append((client, adapter, arrival))
        self.waiting.append((client, adapter, arrival))

    def next(self) -> tuple[str, str, int]:
        """The least served client's, of equal ones the one whose request is the earliest; then so by adapter."""
        least = min(self.service[each[:1]] for each in self.waiting)
        client = min((each for each in self.waiting if self.service[each[:1]] == least), key=lambda each: each[2])[0]
        own = [each for each in self.waiting if each[0] == client]
        return min(own, key=lambda each: (self.service[each[:2]], each[2]))

    def end(self, which: tuple[str, str, int]) -> None:
        self.live.remove(which)
        gone = {which[:1], which[:2]} - self.active()
        self.ended += sorted(gone, key=len)
        if which[:1] in gone:
            self.service = {key: had for key, had in self.service.items() if key[0] != which[0] or len(key) == 1}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("xyz"), st.sampled_from("abc")),  # a request comes
            st.integers(0, 9),  # the next one is taken, and charged so much
            st.just("end"),  # the one that was taken first ends
        ),
        max_size=80,
    )
)
def test_the_next_request_is_the_naive_ones(history: list[tuple[str, str] | int | str]) -> None:
    naive, fair = Naive(), FairShare()
    waiting, taken = Waiting(fair), list[Completion]()
    arrivals = itertools.count(1)
    for each in history:
        if isinstance(each, tuple):
            came = completion(3, adapter=each[1], client=each[0])
            came.arrival = next(arrivals)
            naive.add(*each, came.arrival)
            fair.enter(came.request.party)
            waiting.add(came)
        elif isinstance(each, int) and len(waiting):
            chosen = waiting.next({}, (False,))
            assert chosen is not None
            expected = naive.next()
            assert (chosen.request.client, chosen.request.adapter, chosen.arrival) == expected
            waiting.remove(chosen)
            naive.waiting.remove(expected)
            fair.charge(chosen.request.party, each)
            for key in (expected[:1], expected[:2]):
                naive.service[key] += each
            taken.append(chosen)
        elif each == "end" and taken:
            ended = taken.pop(0)
            fair.leave(ended.request.party)
            naive.end((ended.request.client, ended.request.adapter, ended.arrival))
