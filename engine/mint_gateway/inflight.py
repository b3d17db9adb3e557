"""The gateway's own counts of requests in flight, in total and by engine address, with a limit that keys share."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mint_contracts.errors import Overloaded
from mint_contracts.shares import Shares
from mint_gateway.security.keys import sharer


class InFlight:
    """Counts of requests in flight, or of other `things`; `limit` bounds the total, and keys share it.

    Without keys, or with only one, clients cannot be told apart, as they may have a proxy's address, and any may have
    all.
    """

    def __init__(self, limit: int, things: str = "requests", retry_after_s: float = 1.0) -> None:
        self._limit, self._things, self._retry_after_s = limit, things, retry_after_s
        self._shares = Shares(limit)
        self._by_address: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Those in flight now."""
        return self._shares.all_taken

    @property
    def by_address(self) -> Mapping[str, int]:
        """Requests in flight by engine address, without addresses that have none."""
        return self._by_address

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one during the block. Raises Overloaded at the limit, or if the caller's key has its share."""
        client = sharer.get()
        if not self._shares.may_take(client):
            raise Overloaded("gateway", f"{self._problem(client)}; retry later", retry_after_s=self._retry_after_s)
        self._shares.take(client)
        try:
            yield
        finally:
            self._shares.give_back(client)

    def _problem(self, client: str) -> str:
        if not self._shares.free:
            return f"{self._limit} {self._things} are in flight, its limit"
        mine = f"{self._shares.taken(client)} {self._things} with your key are in flight"
        return f"{mine}, and {self._shares.free} more are left for other keys"

    @contextmanager
    def at(self, address: str) -> Iterator[None]:
        """Count one request at an engine during the block."""
        self._by_address[address] += 1
        try:
            yield
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
