"""Exact numbers in texts, with any number of digits."""

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation

_MINUS = "\N{MINUS SIGN}"
_SIGN = rf"(?<![^\W_])[-+{_MINUS}]"  # not after a letter or a digit: 5-10 are two numbers, 2024-05-12 is a date
_COMMA = r"(?:,(?:\\!)?|\{,\}|\\,)"  # between thousands, also as LaTeX has it: 1,\!000, 1{,}000 and 1\,000
# Uses `re`, whose digits are those that `Decimal` reads; `regex` knows newer ones.
_NUMBER = re.compile(rf"(?:{_SIGN})?(?:(?:\d{{1,3}}(?:{_COMMA}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
# A difference is rounded to 28 significant digits, never to 0, and takes little time even for huge exponents.
_ROUNDING = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, or None; commas group thousands. Also None above about 1e18 digits."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(re.sub(_COMMA, "", found[-1]).replace(_MINUS, "-")) if found else None
    except InvalidOperation:
        return None


def is_near(number: Decimal, wanted: Decimal, tolerance: float) -> bool:
    """Whether they differ by at most the tolerance, which is taken as written: 0.1 is exactly a tenth."""
    return _ROUNDING.subtract(number, wanted).copy_abs() <= Decimal(repr(tolerance))
