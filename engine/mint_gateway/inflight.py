"""The gateway's own counts of requests in flight, in total and by engine address, with a limit on the total."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mint_contracts.errors import Overloaded


class InFlight:
    """Counts of requests in flight; `limit` bounds the total."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_address: Counter[str] = Counter()
        self.total = 0

    @property
    def by_address(self) -> Mapping[str, int]:
        """Requests in flight by engine address, without addresses that have none."""
        return self._by_address

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one request during the block. Raises Overloaded at the limit."""
        if self.total >= self._limit:
            raise Overloaded(
                "gateway", f"{self._limit} requests are in flight, its limit; retry later", retry_after_s=1.0
            )
        self.total += 1
        try:
            yield
        finally:
            self.total -= 1

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
