"""Estimates from the pace at which requests end when to retry after a full queue.

Only ends while others wait count: before, requests ended as rarely as they came.
"""

from collections import deque

_REMEMBERED = 512  # more than end in one step
_SHORTEST_S, _LONGEST_S = 0.2, 30.0
_UNKNOWN_S = 1.0


class Pace:
    """When others began to wait, and the end times of the last requests since then, in seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED + 1)

    def awaited(self, now: float) -> None:
        """Record that a request waits for the end of others."""
        if not self._times:
            self._times.append(now)

    def ended(self, now: float, *, awaited: bool) -> None:
        """Record that a request ended; `awaited`: others waited for it."""
        if awaited:
            self._times.append(now)
        else:
            self._times.clear()

    def retry_after_s(self, waiting: int, now: float) -> float:
        """Return the seconds until half of `waiting` requests will have ended at the recent pace, within bounds.

        Until one has ended, that is as long again as they have waited.
        """
        since, ended = self._times[0] if self._times else now, len(self._times) - 1
        if ended < 1 or now <= since:
            return min(max(now - since, _UNKNOWN_S), _LONGEST_S)
        return min(max(waiting / 2 / (ended / (now - since)), _SHORTEST_S), _LONGEST_S)
