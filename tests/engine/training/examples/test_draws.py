"""Which examples a step takes, and the seed of each completion: no state is needed to say so again."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mint_engine.examples.draw import draw, rollout_seed


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 7), st.integers(1, 6))
def test_each_epoch_takes_every_example_once_in_an_order_of_its_own(
    count: int, seed: int, places: int, epochs: int
) -> None:
    taken = [at for step in range(-(-count * epochs // places)) for at in draw(count, seed, step, places)]
    for epoch in range(epochs):
        assert Counter(taken[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_draws_are_the_same_whenever_they_are_made_and_differ_by_seed() -> None:
    assert [draw(10, 1, step, 4) for step in (0, 1, 2)] == [[5, 3, 9, 6], [1, 7, 0, 4], [8, 2, 2, 4]]
    assert draw(10, 1, 2, 4) == [8, 2, 2, 4]
    assert draw(10, 2, 0, 4) != draw(10, 1, 0, 4)


def test_every_order_comes_about_as_often() -> None:
    orders = Counter(tuple(draw(4, seed, 0, 4)) for seed in range(4800))
    assert len(orders) == 24
    assert all(120 < times < 280 for times in orders.values()), "200 each, within six standard deviations"


def test_a_draw_makes_no_order_of_all_examples() -> None:
    """Draws are made on the event loop, where permuting a million examples would stall every stream."""
    assert len(set(draw(10**15, 1, 0, 8))) == 8


def test_every_completion_has_a_seed_of_its_own() -> None:
    seeds = {rollout_seed(p, s, e, g) for p in range(3) for s in range(4) for e in range(5) for g in range(6)}
    assert len(seeds) == 3 * 4 * 5 * 6
    assert rollout_seed(1, 23, 4, 5) == rollout_seed(1, 23, 4, 5)
    assert all(0 <= seed < 2**64 for seed in seeds)
