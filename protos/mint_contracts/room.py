"""Memory that requests share, so that all together cannot take what an engine or a gateway has."""

from types import TracebackType
from typing import Self

from mint_contracts.errors import Overloaded

OWN_BYTES = 32 << 10  # of a part, whatever others take: some hundred tokens


class Room:
    """So many bytes, beyond what is each part's own; `problem` is what `whose` error says where they are taken."""

    def __init__(self, most: int, whose: str, problem: str) -> None:
        self._most, self._whose, self._problem = most, whose, problem
        self.taken = 0

    def part(self, own: int = OWN_BYTES) -> "Part":
        """One that has nothing yet."""
        return Part(self, own)

    def take(self, more: int) -> None:
        """Give so many bytes to a part, or take them back where it is less than nothing. Raises Overloaded."""
        if more > 0 and self.taken + more > self._most:
            raise Overloaded(self._whose, f"{self._problem}; retry later", retry_after_s=1.0)
        self.taken += more


class Part:
    """What one takes of a room, until the block ends."""

    def __init__(self, room: Room, own: int) -> None:
        self._room, self._own, self._taken = room, own, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fill(0)

    def fill(self, size: int) -> None:
        """Have so many bytes from now on. Raises Overloaded, and has what it had."""
        taken = max(0, size - self._own)
        self._room.take(taken - self._taken)
        self._taken = taken
