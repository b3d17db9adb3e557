"""Durations as people write them in resources: 45s, 15m, 1h30m, 7d; and as they are shown to people."""

import re
from typing import Annotated

import msgspec

PATTERN = "^([0-9]{1,3}d|([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?)$"
Duration = Annotated[str, msgspec.Meta(pattern=PATTERN)]

_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def seconds(duration: Duration) -> int:
    """Return the duration in seconds; 0 if it is empty."""
    return sum(int(count) * _UNITS_S[unit] for count, unit in re.findall(r"([0-9]+)([dhms])", duration))


def span(seconds: float) -> str:
    """Format a duration for people, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
