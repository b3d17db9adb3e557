"""The demand for each adapter, and how fast adapters are loaded, with clocks that the test sets."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_engine.residency.rate import SMOOTHED, LoadRate
from mint_engine.scheduling.demand import LEAST, MOST, SMOOTHED_S, Demand


def test_demand_comes_to_the_requests_that_are_in_flight_all_the_time() -> None:
    demand = Demand()
    demand.enter("a", 8, 0.0)
    assert demand.top(4, 0.0) == {}
    assert demand.top(4, SMOOTHED_S)["a"] == pytest.approx(8 * 0.632, rel=0.05)
    assert demand.top(4, 20 * SMOOTHED_S) == {"a": 8.0}


def test_short_requests_count_for_the_time_that_they_take() -> None:
    demand = Demand()
    for second in range(100):
        demand.enter("a", 1, second)
        demand.leave("a", second + 0.25)
    assert demand.top(1, 100.0)["a"] == pytest.approx(0.25, rel=0.1)


def test_the_most_asked_for_are_told_and_the_bare_base_is_not() -> None:
    demand = Demand()
    for index, name in enumerate(["", "a", "b", "c"], start=1):
        demand.enter(name, index, 0.0)
    assert list(demand.top(2, 100.0)) == ["c", "b"]


def test_demand_that_ended_is_forgotten() -> None:
    demand = Demand()
    demand.enter("a", 1, 0.0)
    demand.leave("a", 1.0)
    assert list(demand.top(1, 2.0)) == ["a"]
    assert demand.top(1, 100.0) == {}
    assert len(demand) == 0


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 2)), max_size=400))
def test_the_books_stay_small_however_many_adapters_there_are(asked: Sequence[tuple[int, float]]) -> None:
    demand, now = Demand(), 0.0
    for name, after in asked:
        now += after
        demand.enter(f"a/{name}", 1, now)
        demand.leave(f"a/{name}", now)
        assert len(demand) <= MOST
    assert all(each >= LEAST for each in demand.top(MOST, now).values())


def test_loads_a_second_are_measured_over_the_time_of_loading_alone() -> None:
    rate = LoadRate()
    assert rate.per_s == 0.0
    for start in (0.0, 1000.0, 5000.0):
        rate.began(start)
        rate.began(start)
        rate.ended(start + 0.5, loading=1)
        rate.ended(start + 1.0, loading=0)
    assert rate.per_s == 2.0


def test_the_load_rate_follows_what_loads_take_now() -> None:
    rate = LoadRate()
    for each_s in [0.1] * SMOOTHED + [1.0] * 10 * SMOOTHED:
        rate.began(0.0)
        rate.ended(each_s, loading=0)
    assert rate.per_s == pytest.approx(1.0, rel=0.05)
