"""Durations in the forms that people write."""

import pytest

from mint_contracts.durations import seconds


@pytest.mark.parametrize(
    ("written", "meant"),
    [("45s", 45), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("2h0m5s", 7205), ("7d", 604_800), ("", 0)],
)
def test_a_duration_in_seconds(written: str, meant: int) -> None:
    assert seconds(written) == meant
