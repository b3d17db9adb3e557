"""A memory budget shared by requests, so that together they cannot use up an engine's or a gateway's memory."""

from types import TracebackType
from typing import Self

from mint_contracts.errors import Overloaded

OWN_BYTES = 32 << 10  # each share's own allowance, whatever others take: about a hundred tokens


class ByteBudget:
    """A budget of `most` bytes. Each share may also use its own small allowance; beyond that, shares draw on it.

    If it is used up, Overloaded names `whose` and `problem`.
    """

    def __init__(self, most: int, whose: str, problem: str) -> None:
        self._most, self._whose, self._problem = most, whose, problem
        self.taken = 0

    def share(self, own: int = OWN_BYTES) -> "ByteShare":
        """Return a new share that holds nothing yet."""
        return ByteShare(self, own)

    def take(self, more: int) -> None:
        """Reserve `more` bytes, or release them if it is negative. Raises Overloaded."""
        if more > 0 and self.taken + more > self._most:
            raise Overloaded(self._whose, f"{self._problem}; retry later", retry_after_s=1.0)
        self.taken += more


class ByteShare:
    """What one user takes of a budget; released when the block ends."""

    def __init__(self, budget: ByteBudget, own: int) -> None:
        self._budget, self._own, self._taken = budget, own, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fill(0)

    def fill(self, size: int) -> None:
        """Hold `size` bytes from now on. Raises Overloaded and then keeps its previous size."""
        taken = max(0, size - self._own)
        self._budget.take(taken - self._taken)
        self._taken = taken
