"""A registering stream is waited for while it keeps sending, not forever, and not while it sends nothing."""

from hypothesis import given
from hypothesis import strategies as st

from mint_gateway.catalog.pace import LEAST_BYTES_S, Pace

NAME = b'{"name": "acme/support-7", "uri": "s3://adapters/acme/support-7"}\n'


def test_a_name_a_second_is_enough_for_a_million_of_them() -> None:
    pace = Pace(60.0)
    for _ in range(1_000_000):
        pace.heard(len(NAME), 1.0)
    assert pace.left_s > 0


def test_many_names_with_a_pause_after_them_are_enough() -> None:
    pace = Pace(60.0)
    for _ in range(1000):
        pace.heard(10_000 * len(NAME), 59.0)
    assert pace.left_s == 60.0


@given(st.lists(st.floats(0.0, 10.0), max_size=30))
def test_messages_with_nothing_in_them_give_no_time(waited: list[float]) -> None:
    pace = Pace(60.0)
    for each in waited:
        pace.heard(0, each)
    assert pace.left_s <= 60.0 - sum(waited) + 1e-6


def test_a_byte_now_and_then_is_not_enough() -> None:
    pace, messages = Pace(60.0), 0
    while pace.left_s > 0:
        pace.heard(1, 5.0)
        messages += 1
    assert messages == 13


@given(st.integers(0, 1 << 40))
def test_time_cannot_be_saved_up(size: int) -> None:
    pace = Pace(60.0)
    pace.heard(size, 0.0)
    assert pace.left_s == 60.0
    pace.heard(LEAST_BYTES_S, 10.0)
    assert pace.left_s == 51.0
