"""Parsing counts on the command line, for argparse."""

import argparse

_DIGITS = 50  # a number with more digits is too large for anything counted, so the rest is cut off


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and digits):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a positive whole number")
    return int(digits[:_DIGITS])
