"""Adapters that waves want and that wait for room to load, most urgent first."""

import heapq

from mint_contracts.records import Tier
from mint_engine.residency.decide import urgency


class Queue:
    """Each adapter is in it once. Whether it is still to be loaded is asked when its turn comes."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, str], str]] = []
        self._names: set[str] = set()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, adapter: str, tier: Tier) -> None:
        """Enter an adapter that is wanted in a tier; no change where it is entered already."""
        if adapter not in self._names:
            self._names.add(adapter)
            heapq.heappush(self._heap, (urgency(adapter, tier), adapter))

    def first(self, count: int) -> set[str]:
        """Take out the most urgent, at most `count`."""
        taken = {heapq.heappop(self._heap)[1] for _ in range(min(max(count, 0), len(self._heap)))}
        self._names -= taken
        return taken
