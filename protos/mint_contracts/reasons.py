"""Why something is away, each reason told once: it may come back with another one, with another password say."""

MOST = 100  # a reason that names what changes each time must not be kept for ever


class Reasons:
    """Those that one outage has had."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def is_new(self, error: Exception) -> bool:
        """Whether it is the outage's first of that text; it is known from then on."""
        why = str(error)
        if why in self._known or len(self._known) == MOST:
            return False
        self._known.add(why)
        return True

    def forget(self) -> None:
        """The outage is over."""
        self._known.clear()
