"""Rewards reported in parts are put together correctly, whichever part is repeated."""

from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.rewards import Rewards


@given(st.lists(st.floats(0, 1), max_size=20), st.data())
def test_parts_that_overlap_make_the_whole(values: list[float], data: st.DataObject) -> None:
    known = Rewards()
    while known.end < len(values):
        first = data.draw(st.integers(0, known.end))
        end = data.draw(st.integers(known.end + 1, len(values)))
        known = known.followed_by(Rewards(first, tuple(values[first:end])))
    assert known == Rewards(0, tuple(values))


def test_repeated_steps_replace_earlier_rewards() -> None:
    known = Rewards(0, (0.1, 0.2, 0.3))
    assert known.followed_by(Rewards(1, (0.5,))) == Rewards(0, (0.1, 0.5))
    assert known.followed_by(Rewards(1)) == Rewards(0, (0.1,))
    assert known.followed_by(Rewards(3)) == known


def test_after_a_gap_only_the_new_rewards_are_known() -> None:
    assert Rewards(0, (0.1,)).followed_by(Rewards(5, (0.5,))) == Rewards(5, (0.5,))
    assert Rewards(4, (0.1,)).followed_by(Rewards(2, (0.5,))) == Rewards(2, (0.5,))
