"""Numbers in texts, exact however many digits they have."""

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation

_MINUS = "\N{MINUS SIGN}"
_SIGN = rf"(?<![^\W_])[-+{_MINUS}]"  # none after a letter or a digit: 5-10 are two numbers, 2024-05-12 is a date
# By `re`, whose digits are those that `Decimal` reads; `regex` knows newer ones.
_NUMBER = re.compile(rf"(?:{_SIGN})?(?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
# A difference is rounded to some digits of its own, never to 0, in a time that no exponent makes long.
_ROUNDING = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def last_number(text: str) -> Decimal | None:
    """The last number in a text; commas group its thousands. None, too, for one of more than some 1e18 digits."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").replace(_MINUS, "-")) if found else None
    except InvalidOperation:
        return None


def is_near(number: Decimal, wanted: Decimal, tolerance: float) -> bool:
    """Whether they are no further apart than the tolerance, which is taken as it is written: 0.1 is a tenth."""
    return _ROUNDING.subtract(number, wanted).copy_abs() <= Decimal(repr(tolerance))
