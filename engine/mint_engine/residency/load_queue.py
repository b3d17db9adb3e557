"""A queue of the adapters that waves want and that wait for a free load worker, most urgent first.

Those whose last load failed take turns with the others: thousands that a store lacks must not delay what it has.
"""

import heapq

from mint_contracts.records import Assignment
from mint_engine.residency.decide import Urgency, urgency


class LoadQueue:
    """Holds each adapter once, with the urgency last given. The caller checks whether it still needs to be loaded."""

    def __init__(self) -> None:
        # By whether the last load failed; they may contain superseded entries, as many as others.
        self._heaps: dict[bool, list[tuple[Urgency, str]]] = {False: [], True: []}
        self._entered: dict[str, tuple[bool, Urgency]] = {}
        self._turn = False  # whose turn it is

    def __len__(self) -> int:
        return len(self._entered)

    def add(self, want: Assignment, *, failed: bool = False) -> None:
        """Add a wanted adapter, or move it if its urgency has changed; `failed`: its last load did."""
        urgent = urgency(want)
        if self._entered.get(want.adapter) != (failed, urgent):
            self._entered[want.adapter] = failed, urgent
            heapq.heappush(self._heaps[failed], (urgent, want.adapter))
        if sum(map(len, self._heaps.values())) > 2 * len(self._entered):
            self._sweep()

    def pop(self, count: int) -> set[str]:
        """Remove and return the most urgent adapters, at most `count`."""
        taken: set[str] = set()
        while self._entered and len(taken) < count:
            adapter = self._pop(failed=self._turn)
            self._turn = not self._turn
            if adapter is not None:
                taken.add(adapter)
        return taken

    def _sweep(self) -> None:
        """Remove superseded entries, which would otherwise stay until they come first."""
        for failed in self._heaps:  # a sorted list is a heap
            self._heaps[failed] = sorted(
                (urgent, name) for name, (its, urgent) in self._entered.items() if its is failed
            )

    def _pop(self, *, failed: bool) -> str | None:
        heap = self._heaps[failed]
        while heap:
            urgent, adapter = heapq.heappop(heap)
            if self._entered.get(adapter) == (failed, urgent):
                del self._entered[adapter]
                return adapter
        return None
