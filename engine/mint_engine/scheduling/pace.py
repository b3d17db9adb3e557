"""How fast requests have been ending, and so when to come back to a full queue."""

from collections import deque

_REMEMBERED = 64
_SHORTEST_S, _LONGEST_S = 0.2, 30.0
_UNKNOWN_S = 1.0


class Pace:
    """The times at which the last requests ended, by a clock of seconds."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def ended(self, now: float) -> None:
        """Note that a request ended."""
        self._ends.append(now)

    def retry_after_s(self, waiting: int, now: float) -> float:
        """Seconds in which half of the queue will have gone, at the recent pace."""
        if len(self._ends) < 2 or now <= self._ends[0]:
            return _UNKNOWN_S
        per_second = len(self._ends) / (now - self._ends[0])
        return min(max(waiting / 2 / per_second, _SHORTEST_S), _LONGEST_S)
