"""A memory budget shared by requests, so that together they cannot use up an engine's or a gateway's memory."""

from types import TracebackType
from typing import Self

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.shares import Shares

OWN_BYTES = 32 << 10  # each share's own allowance, whatever others take: about a hundred tokens


class ByteBudget:
    """A budget of `most` bytes. Each share may also use its own small allowance; beyond that, shares draw on it.

    Clients share it (see `Shares`). If it is used up, Overloaded names `whose` and `problem`.
    """

    def __init__(self, most: int, whose: str, problem: str) -> None:
        self._shares, self._whose, self._problem = Shares(most), whose, problem

    @property
    def taken(self) -> int:
        """Bytes reserved now."""
        return self._shares.all_taken

    def share(self, own: int = OWN_BYTES, client: str = "") -> "ByteShare":
        """Return a new share of a client's that holds nothing yet. Without a name, it may draw on all."""
        return ByteShare(self, own, client)

    def most(self, client: str) -> int:
        """Return the most bytes beyond its own allowances that a client may have while others take none."""
        return self._shares.most(client)

    def check(self, size: int, client: str) -> None:
        """Raise CapacityExceeded if the client could not have `size` bytes even while others take none."""
        if client and size > (most := self.most(client)):
            problem = f"takes {size >> 20} MiB of memory, and a key has {most >> 20} MiB at most"
            raise CapacityExceeded("request", f"{problem}; send or ask for less at a time")

    def take(self, more: int, client: str) -> None:
        """Reserve `more` bytes, or release them if it is negative. Raises Overloaded."""
        if more > 0 and not self._shares.may_take(client, more):
            raise Overloaded(self._whose, f"{self._refusal(client, more)}; retry later", retry_after_s=1.0)
        self._shares.take(client, more)

    def _refusal(self, client: str, more: int) -> str:
        if more > self._shares.free:
            return self._problem
        mine, free = self._shares.taken(client) >> 20, self._shares.free >> 20
        return f"requests with your key take {mine} MiB of such memory, and {free} MiB more are left for other keys"


class ByteShare:
    """What one user takes of a budget; released when the block ends."""

    def __init__(self, budget: ByteBudget, own: int, client: str) -> None:
        self._budget, self._own, self._client, self._taken = budget, own, client, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fill(0)

    def fill(self, size: int) -> None:
        """Hold `size` bytes from now on. Raises Overloaded or CapacityExceeded, and then keeps its previous size."""
        taken = max(0, size - self._own)
        self._budget.check(taken, self._client)
        self._budget.take(taken - self._taken, self._client)
        self._taken = taken
