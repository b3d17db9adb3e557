"""A queue of the adapters that waves want and that wait for a free load worker, most urgent first."""

import heapq

from mint_contracts.records import Assignment
from mint_engine.residency.decide import Urgency, urgency


class LoadQueue:
    """Holds each adapter once, with the urgency last given. The caller checks whether it still needs to be loaded."""

    def __init__(self) -> None:
        self._heap: list[tuple[Urgency, str]] = []  # may contain superseded entries
        self._entered: dict[str, Urgency] = {}

    def __len__(self) -> int:
        return len(self._entered)

    def add(self, want: Assignment) -> None:
        """Add a wanted adapter, or move it if its urgency has changed."""
        urgent = urgency(want)
        if self._entered.get(want.adapter) != urgent:
            self._entered[want.adapter] = urgent
            heapq.heappush(self._heap, (urgent, want.adapter))

    def pop(self, count: int) -> set[str]:
        """Remove and return the most urgent adapters, at most `count`."""
        taken: set[str] = set()
        while self._heap and len(taken) < count:
            urgent, adapter = heapq.heappop(self._heap)
            if self._entered.get(adapter) == urgent:
                del self._entered[adapter]
                taken.add(adapter)
        return taken
