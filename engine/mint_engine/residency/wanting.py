"""Adapters that waves want and that wait for room to load, most urgent first."""

import heapq

from mint_contracts.records import Assignment
from mint_engine.residency.decide import Urgency, urgency


class Queue:
    """Each adapter is in it once, as it was last entered. Whether it is still to be loaded is asked at its turn."""

    def __init__(self) -> None:
        self._heap: list[tuple[Urgency, str]] = []  # with entries that a later one has replaced
        self._entered: dict[str, Urgency] = {}

    def __len__(self) -> int:
        return len(self._entered)

    def add(self, want: Assignment) -> None:
        """Enter what is wanted, or enter it anew where it is more or less urgent by now."""
        urgent = urgency(want)
        if self._entered.get(want.adapter) != urgent:
            self._entered[want.adapter] = urgent
            heapq.heappush(self._heap, (urgent, want.adapter))

    def first(self, count: int) -> set[str]:
        """Take out the most urgent, at most `count`."""
        taken: set[str] = set()
        while self._heap and len(taken) < count:
            urgent, adapter = heapq.heappop(self._heap)
            if self._entered.get(adapter) == urgent:
                del self._entered[adapter]
                taken.add(adapter)
        return taken
