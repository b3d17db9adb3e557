"""Whose update is next: decided from the queue alone, and simulated until all updates have ended."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from mint_engine.policies.updates.turns import Waiting, next_turn

ROWS, BYTES = 10, 12


def taken(*queue: Waiting) -> list[int]:
    return next_turn(queue, ROWS, BYTES)


def test_updates_that_fit_share_a_turn_and_the_first_runs_however_large_it_is() -> None:
    assert taken(Waiting("a", 4, 4), Waiting("b", 4, 4), Waiting("c", 4, 4)) == [0, 1]
    assert taken(Waiting("a", 4, 7), Waiting("b", 4, 7)) == [0]
    assert taken(Waiting("a", 40, 70), Waiting("b", 1, 1)) == [0]


def test_a_policys_updates_follow_each_other_and_the_one_that_has_begun_goes_on_first() -> None:
    assert taken(Waiting("a", 1, 1), Waiting("a", 1, 1), Waiting("b", 1, 1)) == [0, 2]
    assert taken(Waiting("a", 1, 1), Waiting("b", 1, 1), Waiting("a", 1, 1, lasts=True, begun=True)) == [1, 2]


def test_one_that_is_to_be_alone_is() -> None:
    assert taken(Waiting("a", 1, 1, alone=True), Waiting("b", 1, 1)) == [0]
    assert taken(Waiting("b", 1, 1), Waiting("a", 1, 1, alone=True)) == [0]


def test_where_memory_is_full_of_what_has_begun_no_other_long_one_begins_and_short_ones_do() -> None:
    begun = Waiting("a", 1, BYTES, lasts=True, begun=True)
    long, small = Waiting("b", 1, 2, lasts=True), Waiting("c", 1, 1, lasts=True)
    assert taken(long, small, Waiting("d", 1, 1), begun) == [2], "its gradient is there for this turn alone"
    assert taken(long, small, begun) == [2], "nor one that is smaller: it would hold the first up"
    assert taken(long, small) == [0, 1]


@dataclass(eq=False)
class Update:
    """An update that arrives at a given turn, and the turns that it has had."""

    comes: int
    waiting: Waiting
    turns: int
    at: list[int] = field(default_factory=list)  # its turns


_WAITING = st.builds(
    Waiting, st.sampled_from("abcdefg"), st.integers(1, ROWS), st.integers(1, BYTES), alone=st.booleans()
)
_UPDATES = st.lists(
    st.builds(
        lambda comes, waiting, turns, unsure: Update(comes, replace(waiting, lasts=turns > 1 or unsure), turns),
        st.integers(0, 12), _WAITING, st.integers(1, 5), st.booleans(),
    ),
    max_size=12,
)  # fmt: skip


def play(updates: list[Update], most_bytes: int) -> None:
    """Simulate `Updates`: after a turn, unfinished updates go behind those that arrived meanwhile."""
    coming, queue, now = sorted(updates, key=lambda each: each.comes), list[Update](), 0
    while coming or queue:
        places = next_turn([each.waiting for each in queue], ROWS, most_bytes)
        assert bool(places) is bool(queue), "somebody's turn it always is"
        having = [queue[place] for place in places]
        check(queue, having, most_bytes)
        queue = [each for each in queue if each not in having]
        while coming and coming[0].comes <= now:
            queue.append(coming.pop(0))
        for each in having:
            each.at.append(now)
            each.waiting = replace(each.waiting, begun=True)
        queue += [each for each in having if len(each.at) < each.turns]
        now += 1
        assert now < 200, "all come to their end"


def check(queue: list[Update], having: list[Update], most_bytes: int) -> None:
    fresh = [each for each in having if not each.waiting.begun]
    begun = [each for each in queue if each.waiting.begun]
    assert len({each.waiting.policy for each in having}) == len(having)
    assert len(having) <= 1 or sum(each.waiting.rows for each in having) <= ROWS
    assert len(having) <= 1 or not any(each.waiting.alone for each in having)
    kept = begun + [each for each in fresh if each.waiting.lasts]
    assert len(kept) <= 1 or sum(each.waiting.nbytes for each in kept) <= most_bytes
    most = max([most_bytes, *(each.waiting.nbytes for each in begun)])
    assert len(fresh) <= 1 or sum(each.waiting.nbytes for each in begun + fresh) <= most


def check_waits(updates: list[Update], *, of_long: bool) -> None:
    """Check each wait: from arrival, or the end of its policy's last update, to its turn, and from turn to turn."""
    ended: dict[str, int] = defaultdict(int)
    for each in sorted(updates, key=lambda each: each.comes):
        begins = max(each.comes, ended[each.waiting.policy])
        waits = list(zip([begins, *each.at], each.at, strict=False))
        for since, until in waits if of_long or not each.waiting.lasts else waits[1:]:
            for other in updates:
                between = [turn for turn in other.at if since < turn < until]
                assert other.waiting.policy == each.waiting.policy or len(between) <= 1
        assert each.at[0] > ended[each.waiting.policy] or not ended[each.waiting.policy], "in their order"
        ended[each.waiting.policy] = each.at[-1]


@given(_UPDATES)
def test_updates_wait_for_at_most_one_turn_of_each_other_and_all_end(updates: list[Update]) -> None:
    play(updates, 1000)
    check_waits(updates, of_long=True)


@given(_UPDATES)
def test_where_memory_is_short_only_long_ones_that_have_not_begun_wait_longer(updates: list[Update]) -> None:
    play(updates, BYTES)
    check_waits(updates, of_long=False)
