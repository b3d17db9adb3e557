"""When to try again what has failed: after growing delays up to a bound, and at once after a success."""

import random
import time

import pytest

from mint_contracts.backoff import Retry


def test_each_failure_in_a_row_waits_longer_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    retry, waits = None, list[float]()
    for _ in range(5):
        retry = Retry.after(retry, first_s=1.0, cap_s=6.0)
        waits.append(retry.at - 100.0)
    assert waits == [1.0, 2.0, 4.0, 6.0, 6.0]
    assert Retry.after(None, first_s=1.0, cap_s=6.0).failures == 1, "a success in between forgets the failures"


def test_it_is_due_once_the_delay_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    retry = Retry.after(None, first_s=4.0, cap_s=6.0)
    assert not retry.due
    now = 104.0
    assert retry.due
