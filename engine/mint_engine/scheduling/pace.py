"""Estimates from the pace at which requests end when to retry after a full queue."""

from collections import deque

_REMEMBERED = 64
_SHORTEST_S, _LONGEST_S = 0.2, 30.0
_UNKNOWN_S = 1.0


class Pace:
    """The end times of the last requests, in seconds."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def ended(self, now: float) -> None:
        """Record that a request ended."""
        self._ends.append(now)

    def retry_after_s(self, waiting: int, now: float) -> float:
        """Return the seconds until half of `waiting` requests will have ended at the recent pace, within bounds."""
        if len(self._ends) < 2 or now <= self._ends[0]:
            return _UNKNOWN_S
        per_second = len(self._ends) / (now - self._ends[0])
        return min(max(waiting / 2 / per_second, _SHORTEST_S), _LONGEST_S)
