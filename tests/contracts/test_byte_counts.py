"""Byte counts formatted for people."""

import pytest

from mint_contracts.byte_counts import in_units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        ((1 << 20) - 1, "1048575 bytes"),
        (1 << 20, "1 MiB"),
        (3 << 19, "1.5 MiB"),
        (4 << 30, "4 GiB"),
        (12_345_678_901, "11.5 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_bytes_are_written_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert in_units(count) == text
