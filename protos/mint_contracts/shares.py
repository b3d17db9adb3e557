"""Sharing a limited number of things, such as places for requests, so that no client can take them all."""

from collections import Counter


class Shares:
    """A number of things that clients take and give back: each has at most as many as it leaves free.

    So the first has at most half, and a client that comes later still finds some. A client without a name stands for
    everybody, where clients cannot be told apart: it may have all.
    """

    def __init__(self, count: int) -> None:
        self.free = self._count = count
        self._taken: Counter[str] = Counter()

    @property
    def all_free(self) -> bool:
        """Whether nobody has any."""
        return self.free == self._count

    def taken(self, client: str) -> int:
        """Return how many the client has."""
        return self._taken[client]

    def has_one(self, client: str) -> bool:
        """Return whether the client may take one now."""
        return self.free > (self._taken[client] if client else 0)

    def take(self, client: str) -> None:
        """Take one."""
        self.free -= 1
        self._taken[client] += 1

    def give_back(self, client: str) -> None:
        """Give one back."""
        self.free += 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
