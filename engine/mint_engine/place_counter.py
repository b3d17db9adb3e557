"""Counts of each adapter's requests for a bounded number of places, and whether there is room for more."""

from collections.abc import Iterator
from contextlib import contextmanager

# An adapter may have this many requests for each place that is still free: the dynamic threshold of shared buffers
# (Choudhury and Hahne, 1998). One adapter alone gets four fifths of all places, two get four ninths each, and later
# ones always find some.
_SHARE = 4


class PlaceCounter:
    """The number of requests inside, by adapter ("" is the bare base)."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.total = 0
        self._of: dict[str, int] = {}

    def of(self, adapter: str) -> int:
        """Return the number of one adapter's requests."""
        return self._of.get(adapter, 0)

    @property
    def adapters(self) -> frozenset[str]:
        """The adapters that have any request."""
        return frozenset(self._of)

    def has_room(self, adapter: str, count: int) -> bool:
        """Whether all of `count` more requests of one adapter fit."""
        free, own = self.places - self.total, self.of(adapter)
        return count <= free and (not own or own + count <= _SHARE * (free - count + 1))

    def enter(self, adapter: str, count: int) -> None:
        """Count `count` requests of an adapter as entered."""
        self.total += count
        self._of[adapter] = self.of(adapter) + count

    def leave(self, adapter: str) -> None:
        """Count one request of an adapter as left."""
        self.total -= 1
        self._of[adapter] -= 1
        if not self._of[adapter]:
            del self._of[adapter]

    @contextmanager
    def holding(self, adapter: str) -> Iterator[None]:
        """Count one request for the duration of the block."""
        self.enter(adapter, 1)
        try:
            yield
        finally:
            self.leave(adapter)
