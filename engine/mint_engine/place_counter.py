"""Counts of each party's requests for a bounded number of places, and whether there is room for more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

# A party may have this many requests for each place that is still free: the dynamic threshold of shared buffers
# (Choudhury and Hahne, 1998). One party alone gets four fifths of all places, two get four ninths each, and later
# ones always find some. Parties of a party share what it may have by the same rule.
_SHARE = 4

K = TypeVar("K")


class PlaceCounter(Generic[K]):
    """The number of requests inside, by party: by adapter ("" is the bare base), or whatever else shares places."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.total = 0
        self._of: dict[K, int] = {}

    def of(self, party: K) -> int:
        """Return the number of one party's requests."""
        return self._of.get(party, 0)

    @property
    def parties(self) -> frozenset[K]:
        """The parties that have any request."""
        return frozenset(self._of)

    @property
    def free(self) -> int:
        """The places that nobody has."""
        return self.places - self.total

    def room(self, party: K, free: int) -> int:
        """Return how many more requests of one party fit, if `free` places are free to it and others."""
        own = self.of(party)
        return max(0, (_SHARE * (free + 1) - own) // (_SHARE + 1)) if own else free

    def has_room(self, party: K, count: int) -> bool:
        """Whether all of `count` more requests of one party fit."""
        return count <= self.room(party, self.free)

    def enter(self, party: K, count: int) -> None:
        """Count `count` requests of a party as entered."""
        self.total += count
        self._of[party] = self.of(party) + count

    def leave(self, party: K) -> None:
        """Count one request of a party as left."""
        self.total -= 1
        self._of[party] -= 1
        if not self._of[party]:
            del self._of[party]

    @contextmanager
    def holding(self, party: K) -> Iterator[None]:
        """Count one request for the duration of the block."""
        self.enter(party, 1)
        try:
            yield
        finally:
            self.leave(party)
