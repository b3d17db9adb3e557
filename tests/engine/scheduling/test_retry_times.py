"""When to retry after a full queue, by a clock that the test sets."""

import pytest

from mint_engine.scheduling.pace import Pace


def test_half_of_those_that_wait_have_ended_by_then() -> None:
    pace = Pace()
    pace.awaited(100.0)
    pace.awaited(100.4)
    assert pace.retry_after_s(64, 100.5) == 1.0, "not known yet"
    assert pace.retry_after_s(64, 104.0) == 4.0, "none has ended for so long"
    for _ in range(68):  # of one length, so that all end in the same step
        pace.ended(105.0, awaited=True)
    assert pace.retry_after_s(64, 105.0) == pytest.approx(32 / (68 / 5))
    for at in range(1000):
        pace.ended(106 + at / 10, awaited=True)
    assert pace.retry_after_s(64, 206.0) == pytest.approx(3.2, rel=0.01)
    assert pace.retry_after_s(1, 206.0) == 0.2
    assert pace.retry_after_s(10_000, 206.0) == 30.0


def test_how_rarely_requests_came_before_says_nothing() -> None:
    """A night with a request every minute, then a burst that fills the queue at once."""
    pace = Pace()
    for minute in range(100):
        pace.ended(60.0 * minute, awaited=False)
    pace.awaited(6000.0)
    assert pace.retry_after_s(256, 6000.1) == 1.0
    for at in range(1, 41):
        pace.ended(6000 + at / 20, awaited=True)
    assert pace.retry_after_s(216, 6002.0) == pytest.approx(5.4)
    pace.ended(6010.0, awaited=False)
    assert pace.retry_after_s(256, 8999.0) == 1.0, "nobody waits"
    pace.awaited(9000.0)
    assert pace.retry_after_s(256, 9000.1) == 1.0, "nobody waited meanwhile"
    assert pace.retry_after_s(256, 9100.0) == 30.0
