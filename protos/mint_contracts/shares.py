"""Sharing a limited number of things, such as places or bytes for requests, so that no client can take them all."""

from collections import Counter


class Shares:
    """A number of things that clients take and give back: each has at most as many as it leaves free.

    So the first has about half, and a client that comes later still finds some. A client without a name stands for
    everybody, where clients cannot be told apart: it may have all.
    """

    def __init__(self, count: int) -> None:
        self.free = self._count = count
        self._taken: Counter[str] = Counter()

    @property
    def all_taken(self) -> int:
        """How many all clients have."""
        return self._count - self.free

    def taken(self, client: str) -> int:
        """Return how many the client has."""
        return self._taken[client]

    def may_take(self, client: str, count: int = 1) -> bool:
        """Return whether the client may take as many now: of several, it leaves as many as it then has."""
        if not client:
            return count <= self.free
        return self._taken[client] + count <= self.free - count + 1  # the last one may be anybody's

    def most(self, client: str) -> int:
        """Return the most that the client may ever have."""
        return (self._count + 1) // 2 if client else self._count

    def take(self, client: str, count: int = 1) -> None:
        """Take as many."""
        self.free -= count
        self._taken[client] += count
        if not self._taken[client]:
            del self._taken[client]

    def give_back(self, client: str) -> None:
        """Give one back."""
        self.take(client, -1)
