"""A memory budget shared by requests, so that together they cannot use up an engine's or a gateway's memory."""

from types import TracebackType
from typing import Self

from mint_contracts.errors import Overloaded

OWN_BYTES = 32 << 10  # each part's own allowance, whatever others take: about a hundred tokens


class Room:
    """A shared budget of `most` bytes. Each part may also use its own small allowance; beyond that, parts draw on it.

    If it is used up, Overloaded names `whose` and `problem`.
    """

    def __init__(self, most: int, whose: str, problem: str) -> None:
        self._most, self._whose, self._problem = most, whose, problem
        self.taken = 0

    def part(self, own: int = OWN_BYTES) -> "Part":
        """Return a new part that holds nothing yet."""
        return Part(self, own)

    def take(self, more: int) -> None:
        """Reserve `more` bytes, or release them if it is negative. Raises Overloaded."""
        if more > 0 and self.taken + more > self._most:
            raise Overloaded(self._whose, f"{self._problem}; retry later", retry_after_s=1.0)
        self.taken += more


class Part:
    """One user's share of a room; released when the block ends."""

    def __init__(self, room: Room, own: int) -> None:
        self._room, self._own, self._taken = room, own, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fill(0)

    def fill(self, size: int) -> None:
        """Hold `size` bytes from now on. Raises Overloaded and then keeps its previous size."""
        taken = max(0, size - self._own)
        self._room.take(taken - self._taken)
        self._taken = taken
