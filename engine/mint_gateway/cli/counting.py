"""Counts on the command line, for argparse."""

import argparse

_DIGITS = 50  # of more a number is too large for whatever is counted, however it goes on


def positive(text: str) -> int:
    """A whole number from 1 on."""
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and digits):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a positive whole number")
    return int(digits[:_DIGITS])
