"""The reasons of an outage, each reported once: they may change on the way, say after a password was replaced."""

MOST = 100  # bounds memory if every error's text is different


class Reasons:
    """The reasons that one outage has had so far."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def is_new(self, error: Exception) -> bool:
        """Whether this is the outage's first error with that text; remember it."""
        why = str(error)
        if why in self._known or len(self._known) == MOST:
            return False
        self._known.add(why)
        return True

    def forget(self) -> None:
        """Forget all reasons: the outage is over."""
        self._known.clear()
