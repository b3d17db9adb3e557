"""Counts what a plan costs, so that tests of it depend on no clock."""

import sys
from collections.abc import Callable
from types import FrameType


def calls(made: Callable[[], object]) -> int:
    """Return how many of the operator's functions are called in it."""
    count = 0

    def counted(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "mint_operator" in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        made()
    finally:
        sys.setprofile(before)
    return count
