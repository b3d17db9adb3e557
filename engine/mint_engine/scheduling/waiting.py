"""The queue: requests by party, and within a party by arrival."""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Party, Sequence


class Waiting:
    """Requests that wait. The next is the first one of the adapter that was served least."""

    def __init__(self, fairness: FairShare) -> None:
        self._fairness = fairness
        self._queues: dict[Party, deque[Sequence]] = {}  # none is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    @property
    def parties(self) -> Iterable[Party]:
        """Those that wait."""
        return self._queues.keys()

    def first(self, party: Party) -> Sequence:
        """A party's next request."""
        return self._queues[party][0]

    def add(self, sequence: Sequence) -> None:
        """Queue a request by its arrival: one that was preempted goes before those that came after it."""
        queue = self._queues.setdefault(sequence.request.party, deque())
        if not queue or queue[-1].arrival < sequence.arrival:
            queue.append(sequence)
        else:
            insort(queue, sequence, key=lambda each: each.arrival)
        self._count += 1

    def next(self, promised: Mapping[str, int], among: Iterable[bool]) -> Sequence | None:
        """Whose turn it is; the earlier one where two adapters were served alike, `promised` service included.

        `among` says whether of tenants (False), of training (True) or of both.
        """
        service = self._fairness.service

        def rank(head: Sequence) -> tuple[int, int]:
            adapter = head.request.adapter
            return service(adapter) + promised.get(adapter, 0), head.arrival

        heads = (queue[0] for party, queue in self._queues.items() if party.background in among)
        return min(heads, key=rank, default=None)

    def remove(self, sequence: Sequence) -> None:
        """Take a request out."""
        party = sequence.request.party
        queue = self._queues[party]
        queue.remove(sequence)
        self._count -= 1
        if not queue:
            del self._queues[party]
