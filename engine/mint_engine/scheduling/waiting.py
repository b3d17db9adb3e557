"""The queue: requests by party, and within a party by arrival."""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Completion, Party


class Waiting:
    """The waiting requests. The next one is the first of the least served party."""

    def __init__(self, fairness: FairShare) -> None:
        self._fairness = fairness
        self._queues: dict[Party, deque[Completion]] = {}  # no queue is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Completion]:
        for queue in self._queues.values():
            yield from queue

    @property
    def parties(self) -> Iterable[Party]:
        """The parties that have waiting requests."""
        return self._queues.keys()

    def first(self, party: Party) -> Completion:
        """Return a party's next request."""
        return self._queues[party][0]

    def add(self, completion: Completion) -> None:
        """Queue a request by arrival: one that was preempted goes ahead of those that arrived after it."""
        queue = self._queues.setdefault(completion.request.party, deque())
        if not queue or queue[-1].arrival < completion.arrival:
            queue.append(completion)
        else:
            insort(queue, completion, key=lambda each: each.arrival)
        self._count += 1

    def next(self, promised: Mapping[Party, int], among: Iterable[bool]) -> Completion | None:
        """Return the next request or None: the least served party's (with `promised` service), then the earliest.

        `among` selects tenants (False), training (True) or both.
        """
        service = self._fairness.service

        def rank(head: Completion) -> tuple[int, int]:
            party = head.request.party
            return service(party) + promised.get(party, 0), head.arrival

        heads = (queue[0] for party, queue in self._queues.items() if party.background in among)
        return min(heads, key=rank, default=None)

    def remove(self, completion: Completion) -> None:
        """Remove a request."""
        party = completion.request.party
        queue = self._queues[party]
        queue.remove(completion)
        self._count -= 1
        if not queue:
            del self._queues[party]
