"""How many requests of each adapter wait for what is bounded, or have it, and whether there is room for more."""

from collections.abc import Iterator
from contextlib import contextmanager

# An adapter may have this many requests for each place that is still free: the dynamic threshold of shared buffers
# (Choudhury and Hahne, 1998). Alone it gets four fifths of all places, two at once four ninths each, and whoever
# comes later always finds some.
_SHARE = 4


class Crowd:
    """Requests taken in and not out again, by adapter ("" is the bare base)."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.total = 0
        self._of: dict[str, int] = {}

    def of(self, adapter: str) -> int:
        """Requests of one adapter."""
        return self._of.get(adapter, 0)

    @property
    def adapters(self) -> frozenset[str]:
        """Those that have any request."""
        return frozenset(self._of)

    def has_room(self, adapter: str, count: int) -> bool:
        """Whether `count` more of one adapter fit, all of them."""
        free, own = self.places - self.total, self.of(adapter)
        return count <= free and (not own or own + count <= _SHARE * (free - count + 1))

    def enter(self, adapter: str, count: int) -> None:
        """`count` requests were taken in."""
        self.total += count
        self._of[adapter] = self.of(adapter) + count

    def leave(self, adapter: str) -> None:
        """One request is out again."""
        self.total -= 1
        self._of[adapter] -= 1
        if not self._of[adapter]:
            del self._of[adapter]

    @contextmanager
    def holding(self, adapter: str) -> Iterator[None]:
        """Count one request from here to the end of the context."""
        self.enter(adapter, 1)
        try:
            yield
        finally:
            self.leave(adapter)
