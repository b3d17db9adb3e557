"""Loads rest beside running requests: in proportion to their work, after their result, and never otherwise."""

import pytest

from mint_engine.residency import low_priority
from mint_engine.residency.low_priority import LowPriority


class Clock:
    """Time that passes only when told to, and records every sleep."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.now, self.worked = 100.0, 0.0
        self.slept: list[float] = []
        patched.setattr("time.monotonic", lambda: self.now)
        patched.setattr("time.thread_time", lambda: self.worked)
        patched.setattr("time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def work(self, seconds: float, waited: float = 0.0) -> str:
        self.worked += seconds
        self.now += seconds + waited
        return "done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_thread_rests_before_its_next_work_as_its_share_asks(clock: Clock) -> None:
    own = LowPriority(lambda: True, share=1 / 10)
    assert own.run(lambda: clock.work(0.002, waited=5.0)) == "done"
    assert clock.slept == [], "no result waits for a rest"
    own.run(lambda: clock.work(0.001))
    assert clock.slept == [pytest.approx(0.018)], "waiting for a disk is no work"
    clock.now += 1.0
    own.run(lambda: clock.work(0.001))
    assert len(clock.slept) == 1, "it has rested enough by itself"


def test_threads_share_what_all_of_them_take(clock: Clock) -> None:
    own = LowPriority(lambda: True, threads=2, share=1 / 10)
    own.run(lambda: clock.work(0.002))
    own.run(lambda: None)
    assert clock.slept == [pytest.approx(0.038)], "twice as long, less its own work, as one alone would"


def test_a_rest_is_bounded_and_failed_work_counts(clock: Clock) -> None:
    own = LowPriority(lambda: True)

    def fail() -> None:
        clock.work(1e3)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        own.run(fail)
    own.run(lambda: None)
    assert clock.slept == [pytest.approx(low_priority.LONGEST_REST_S)]


def test_nothing_rests_while_no_request_runs(clock: Clock) -> None:
    own = LowPriority(lambda: False, share=1e-9)
    for _ in range(100):
        own.run(lambda: clock.work(0.002))
    assert clock.slept == []
