"""How long to wait before trying again: exponential, jittered, bounded."""

import random
import time

import msgspec


def delay_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return the seconds to wait after the `attempt`-th failure (from 1): half of it fixed, half random.

    The result is within [d/2, d] for d = min(cap_s, first_s * 2^(attempt-1)).
    """
    full = min(cap_s, first_s * 2.0 ** min(attempt - 1, 60))
    return full / 2 + full / 2 * random.random()  # noqa: S311 - spreads clients out; it is no secret


class Retry(msgspec.Struct, frozen=True):
    """How often something has failed in a row, and when to try it again, by the monotonic clock."""

    failures: int
    at: float

    @classmethod
    def after(cls, last: "Retry | None", *, first_s: float, cap_s: float) -> "Retry":
        """Return when to try again after a failure just now; `last` is what the attempt before gave, if it failed."""
        failures = 1 if last is None else last.failures + 1
        return cls(failures, time.monotonic() + delay_s(failures, first_s=first_s, cap_s=cap_s))

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return time.monotonic() >= self.at
