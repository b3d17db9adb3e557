"""The queue: requests by adapter, and within an adapter by arrival."""

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping

from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Sequence


class Waiting:
    """Requests that wait. The next is the first one of the adapter that was served least."""

    def __init__(self, fairness: FairShare) -> None:
        self._fairness = fairness
        self._queues: dict[str, deque[Sequence]] = {}  # none is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def add(self, sequence: Sequence) -> None:
        """Queue a request by its arrival: one that was preempted goes before those that came after it."""
        queue = self._queues.setdefault(sequence.request.adapter, deque())
        if not queue or queue[-1].arrival < sequence.arrival:
            queue.append(sequence)
        else:
            insort(queue, sequence, key=lambda each: each.arrival)
        self._count += 1

    def next(self, promised: Mapping[str, int]) -> Sequence | None:
        """Whose turn it is; the earlier one where two adapters were served alike, `promised` service included."""
        service = self._fairness.service

        def rank(head: Sequence) -> tuple[int, int]:
            adapter = head.request.adapter
            return service(adapter) + promised.get(adapter, 0), head.arrival

        return min((queue[0] for queue in self._queues.values()), key=rank, default=None)

    def remove(self, sequence: Sequence) -> None:
        """Take a request out."""
        adapter = sequence.request.adapter
        queue = self._queues[adapter]
        queue.remove(sequence)
        self._count -= 1
        if not queue:
            del self._queues[adapter]
