"""The measured rate at which an engine loads adapters."""

SMOOTHED = 16  # loads over which the rate is averaged
SOONEST_S = 1e-4  # lower bound of the smoothed time between two ends


class LoadRate:
    """Loads completed per second of loading, smoothed over about the last sixteen; concurrent loads all count."""

    def __init__(self) -> None:
        self._each_s: float | None = None
        self._since: float | None = None  # when the last load ended, or the first one after an idle time began

    @property
    def per_s(self) -> float:
        """The rate, rounded to two digits; 0 before the first load has ended."""
        return 0.0 if self._each_s is None else float(f"{1 / max(self._each_s, SOONEST_S):.2g}")

    def began(self, now: float) -> None:
        """Record that a load has begun."""
        if self._since is None:
            self._since = now

    def ended(self, now: float, *, loading: int) -> None:
        """Record that a load has ended while `loading` others go on."""
        took = now - (now if self._since is None else self._since)
        self._each_s = took if self._each_s is None else self._each_s + (took - self._each_s) / SMOOTHED
        self._since = now if loading else None
