"""How fast an engine brings adapters up, measured while it does so."""

SMOOTHED = 16  # loads
SOONEST_S = 1e-4  # between two that end together


class LoadRate:
    """Loads that end in a second of loading, over the last some sixteen, however many go on at once."""

    def __init__(self) -> None:
        self._each_s: float | None = None
        self._since: float | None = None  # the last load ended, or the first began after a time of none

    @property
    def per_s(self) -> float:
        """To two digits; 0 before the first load has ended."""
        return 0.0 if self._each_s is None else float(f"{1 / max(self._each_s, SOONEST_S):.2g}")

    def began(self, now: float) -> None:
        """A load has begun."""
        if self._since is None:
            self._since = now

    def ended(self, now: float, *, loading: int) -> None:
        """A load has ended, and `loading` go on."""
        took = now - (now if self._since is None else self._since)
        self._each_s = took if self._each_s is None else self._each_s + (took - self._each_s) / SMOOTHED
        self._since = now if loading else None
