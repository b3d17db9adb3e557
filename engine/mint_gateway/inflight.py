"""The gateway's own counts of what is in flight, whole and by engine address, with a limit on the whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mint_contracts.errors import Overloaded


class InFlight:
    """Counts. `limit` bounds the whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_address: Counter[str] = Counter()
        self.total = 0

    @property
    def by_address(self) -> Mapping[str, int]:
        """Requests in flight by engine address; addresses without any are left out."""
        return self._by_address

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one request; raises Overloaded at the limit."""
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
        """Count one request at an engine."""
        self._by_address[address] += 1
        try:
            yield
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
