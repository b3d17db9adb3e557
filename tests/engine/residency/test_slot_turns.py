"""Which slots close so that waiting adapters get one: decided from a frozen view alone, and simulated over time."""

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mint_engine.residency.slot_turns import REMEMBERED, Seat, SlotTerms, Turn, choose_closed, in_turns, remember

TERMS = SlotTerms(hold_s=2.0, late_s=5.0)
NOW = 10.0


def closed(*seats: Seat, waiting: int = 1, free: int = 0) -> set[int]:
    return set(choose_closed(seats, free=free, waiting=waiting, now=NOW, terms=TERMS).closed)


def test_the_adapter_that_was_there_longest_gives_way_first() -> None:
    seats = [Seat(0, since=7, users=1), Seat(1, since=3, users=9), Seat(2, since=5, users=2)]
    assert [closed(*seats, waiting=waiting) for waiting in range(5)] == [set(), {1}, {1, 2}, {0, 1, 2}, {0, 1, 2}]


def test_no_adapter_gives_way_while_a_slot_is_free_or_idle() -> None:
    seats = [Seat(0, since=0, users=1), Seat(1, since=0, users=0)]
    assert closed(*seats) == closed(*seats, free=1, waiting=2) == set()
    assert closed(*seats, waiting=2) == {0}


def test_each_adapter_has_its_slot_for_a_while_and_then_it_is_looked_at_again() -> None:
    young = [Seat(0, since=8.5, users=1), Seat(1, since=9, users=1)]
    assert choose_closed(young, free=0, waiting=1, now=NOW, terms=TERMS) == Turn(frozenset(), again_at=10.5)
    assert choose_closed(young, free=0, waiting=1, now=10.5, terms=TERMS) == Turn(frozenset({0}), again_at=15.5)


def test_waves_adapters_and_policies_never_give_way() -> None:
    assert closed(Seat(0, since=0, users=1, pinned=True)) == set()
    assert closed(Seat(0, since=0, users=1, pinned=True, closed_at=9)) == set(), "and is opened once it is wanted"


def test_beside_a_slot_that_is_late_others_are_tried_in_turn() -> None:
    late, other, third = Seat(0, since=0, users=1, closed_at=5), Seat(1, since=1, users=1), Seat(2, since=2, users=1)
    assert closed(late, other, third) == {0, 1}
    assert closed(late, replace(other, closed_at=6), third) == {0, 1}
    assert closed(late, replace(other, closed_at=5), third) == {0, 2}, "it was late as well"
    assert closed(late, replace(other, closed_at=5)) == {0, 1}, "there is no other"


def test_clients_take_turns_and_the_one_whose_last_slot_is_longest_ago_is_next() -> None:
    assert in_turns("aaabac", {"a": 7, "b": 3}) == [5, 3, 0, 1, 2, 4], "c has had none yet"
    assert in_turns("baab", {}) == [0, 1, 3, 2], "nobody has had one: whoever came first"


def test_of_very_many_clients_those_whose_last_slot_is_longest_ago_are_forgotten_and_still_are_next() -> None:
    last = dict[str, int]()
    for now, client in enumerate(["again", "gone", *map(str, range(REMEMBERED - 2)), "again", "new"], 1):
        remember(last, client, now)
    assert len(last) == REMEMBERED
    assert in_turns([("new",), ("again",), ("0",), ("gone",)], last) == [3, 2, 1, 0]


def test_what_several_clients_wait_for_comes_in_the_first_turn_that_is_any_ones() -> None:
    assert in_turns(["x", "x", "x", "xy"], {}) == [0, 3, 1, 2], "y waits for nothing else"
    assert in_turns(["xy", "x", "y"], {"x": 1, "y": 2}) == [0, 2, 1], "and only once"


@given(
    st.lists(st.sets(st.sampled_from("abcd"), min_size=1), max_size=12),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9)),
)
def test_the_order_foretold_is_the_one_in_which_slots_are_then_given(
    line: list[set[str]], last: dict[str, int]
) -> None:
    """Whoever is next takes the turn of the one of its clients whose last slot is longest ago."""
    left = {position: sorted(its) for position, its in enumerate(line)}
    foretold = in_turns(list(left.values()), last)
    for now, expected in enumerate(foretold, 10):
        position = list(left)[in_turns(list(left.values()), last)[0]]
        assert position == expected
        remember(last, min(left.pop(position), key=lambda client: last.get(client, 0)), now)
    assert not left


@given(st.integers(0, 9), st.integers(0, 9))
def test_one_client_alone_is_served_in_order_of_arrival(count: int, last: int) -> None:
    assert in_turns([("",)] * count, {"": last}) == list(range(count))


@given(st.lists(st.sampled_from("abcd") | st.none(), max_size=60))
def test_nobody_who_is_next_of_a_client_waits_for_two_turns_of_another(events: list[str | None]) -> None:
    """Each event is a waiter's arrival, or a slot that somebody gets."""
    line: list[tuple[int, str]] = []
    last: dict[str, int] = {}
    meanwhile: dict[str, list[str]] = {}  # who has had slots since the client last had one or came to the line
    for now, event in enumerate(events, 1):
        if event is not None:
            line.append((now, event))
            meanwhile.setdefault(event, [])
        elif line:
            order = in_turns([client for _, client in line], last)
            assert sorted(order) == list(range(len(line)))
            arrived, client = line.pop(order[0])
            assert arrived < min((other for other, its in line if its == client), default=now), "its own in order"
            if line:  # what would come next, if nobody else came
                kept = [at - (at > order[0]) for at in order[1:]]
                assert in_turns([each for _, each in line], last | {client: now}) == kept
            last[client] = now
            del meanwhile[client]
            for had in meanwhile.values():
                had.append(client)
                assert len(had) == len(set(had))
            if any(each == client for _, each in line):
                meanwhile[client] = []


TIMES = st.sampled_from([0.0, 1.0, 4.0, 5.0, 6.5, 8.0, 8.5, 9.0, NOW])
SEATS = st.lists(
    st.builds(Seat, st.integers(0, 9), TIMES, st.integers(0, 2), st.booleans(), st.none() | TIMES),
    max_size=8, unique_by=lambda seat: seat.slot,
)  # fmt: skip


@given(SEATS, st.integers(0, 2), st.integers(0, 6), st.randoms(use_true_random=False))
def test_a_decision_takes_no_more_than_is_lacking_and_from_nobody_too_soon(
    seats: list[Seat], free: int, waiting: int, random: Random
) -> None:
    decided = choose_closed(seats, free=free, waiting=waiting, now=NOW, terms=TERMS)
    shuffled = random.sample(seats, len(seats))
    assert decided == choose_closed(shuffled, free=free, waiting=waiting, now=NOW, terms=TERMS), (
        "the same picture, in any order"
    )
    by_slot = {seat.slot: seat for seat in seats}
    lacking = max(0, waiting - free - sum(not seat.users and not seat.pinned for seat in seats))
    anew = [by_slot[slot] for slot in decided.closed if by_slot[slot].closed_at is None]
    assert len(decided.closed) <= 2 * lacking
    assert all(by_slot[slot].users and not by_slot[slot].pinned for slot in decided.closed)
    assert all(seat.since + TERMS.hold_s <= NOW for seat in anew)
    may = [seat for seat in seats if seat.users and not seat.pinned]
    left = [seat for seat in may if seat.closed_at is None and seat.slot not in decided.closed]
    assert all(one.since <= other.since for one in anew for other in left)
    ready = [seat for seat in may if seat.closed_at is not None or seat.since + TERMS.hold_s <= NOW]
    assert len(decided.closed) >= min(lacking, len(ready)), "everybody has one that closes, if there are so many"
    assert decided.again_at > NOW


@given(SEATS, st.integers(0, 2), st.integers(0, 6), st.floats(0, 1, exclude_max=True))
def test_a_decision_stands_until_it_says_to_look_again(
    seats: list[Seat], free: int, waiting: int, share: float
) -> None:
    decided = choose_closed(seats, free=free, waiting=waiting, now=NOW, terms=TERMS)
    carried_out = [
        replace(seat, closed_at=(NOW if seat.closed_at is None else seat.closed_at))
        if seat.slot in decided.closed
        else replace(seat, closed_at=None)
        for seat in seats
    ]
    later = NOW + share * (min(decided.again_at, NOW + 100) - NOW)
    assert choose_closed(carried_out, free=free, waiting=waiting, now=later, terms=TERMS).closed == decided.closed


class Play:
    """More adapters than slots, each with endless requests, in steps of one second."""

    def __init__(
        self, slots: int, adapters: int, pinned: int, longest: int, terms: SlotTerms, random: Random
    ) -> None:
        self.terms, self.longest, self.random, self.now = terms, longest, random, 0
        self.pinned, self.open_to = pinned, slots - pinned
        self.tenants = dict(enumerate(range(slots)))  # by slot
        self.since = dict.fromkeys(range(slots), 0)
        self.closed: dict[int, int] = {}  # since when, by slot
        self.ends: dict[int, list[int]] = {slot: [] for slot in range(slots)}  # of requests in flight
        self.line = deque((adapter, 0, ahead) for ahead, adapter in enumerate(range(slots, adapters)))
        self.waits: list[tuple[int, int]] = []  # how long, behind how many
        self.tenures: list[int] = []

    def second(self) -> None:
        for slot, ends in self.ends.items():
            ends[:] = [end for end in ends if end > self.now]
            if slot not in self.closed:
                ends.append(self.now + self.random.randint(1, self.longest))
        for slot in [slot for slot, ends in self.ends.items() if not ends and self.line]:
            self.pass_on(slot)
        seats = [
            Seat(slot, self.since[slot], len(self.ends[slot]), slot < self.pinned, self.closed.get(slot))
            for slot in self.tenants
        ]
        decided = choose_closed(seats, free=0, waiting=len(self.line), now=self.now, terms=self.terms)
        self.closed = {slot: self.closed.get(slot, self.now) for slot in decided.closed}
        self.now += 1

    def pass_on(self, slot: int) -> None:
        adapter, began, ahead = self.line.popleft()
        self.waits.append((self.now - began, ahead))
        self.tenures.append(self.now - self.since[slot])
        self.line.append((self.tenants[slot], self.now, len(self.line)))
        self.tenants[slot], self.since[slot] = adapter, self.now
        self.closed.pop(slot, None)
        self.ends[slot].append(self.now + self.random.randint(1, self.longest))


@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(1, 12), st.integers(1, 5), st.integers(1, 9),
    st.integers(0, 99),
)  # fmt: skip
def test_everybody_waits_within_the_bound_and_nobody_loses_a_slot_too_soon(
    slots: int, more: int, pinned: int, longest: int, hold: int, late: int, seed: int
) -> None:
    play = Play(slots, slots + more, min(pinned, slots - 1), longest, SlotTerms(hold, late), Random(seed))
    while play.now < 300:
        play.second()
    turn_s = hold + longest + 1  # a decision within a second takes effect at its end
    left = [(play.now - began, ahead) for _, began, ahead in play.line]
    for waited, ahead in play.waits + left:
        assert waited <= (ahead // play.open_to + 1) * turn_s
    assert min(play.tenures) >= hold
    assert len(play.waits) >= min(more, play.open_to) * (300 // turn_s - 1), "slots do change hands"
