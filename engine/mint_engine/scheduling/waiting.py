"""The queue: requests by client and party, and within a party by arrival; and how long sharers wait for a place."""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter

from mint_engine.scheduling.fairness import FairShare
from mint_engine.scheduling.request import Completion, Party, Sharer

_Queues = dict[Party, deque[Completion]]  # no queue is empty


class Waiting:
    """The waiting requests. The next one is the first of the least served client's least served party."""

    def __init__(self, fairness: FairShare) -> None:
        self._fairness = fairness
        self._of: dict[bool, dict[Sharer, _Queues]] = {False: {}, True: {}}  # tenants' and training's; none is empty
        self._count = 0
        self._without: dict[Sharer, int] = {}  # sharers that wait without a place: since which step
        self._step = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Completion]:
        for queues in self._all():
            for queue in queues.values():
                yield from queue

    def has(self, background: bool) -> bool:
        """Return whether any request of training, or of tenants, waits."""
        return bool(self._of[background])

    def add(self, completion: Completion) -> None:
        """Queue a request by arrival: one that was preempted goes ahead of those that arrived after it."""
        party = completion.request.party
        queue = self._of[party.background].setdefault(party.path[0], {}).setdefault(party, deque())
        if not queue or queue[-1].arrival < completion.arrival:
            queue.append(completion)
        else:
            insort(queue, completion, key=lambda each: each.arrival)
        self._count += 1

    def remove(self, completion: Completion) -> None:
        """Remove a request."""
        party = completion.request.party
        queues = self._of[party.background][party.path[0]]
        queues[party].remove(completion)
        self._count -= 1
        if not queues[party]:
            del queues[party]
            if not queues:
                del self._of[party.background][party.path[0]]

    def note(self, running: Iterable[Completion], step: int) -> None:
        """Note, at the beginning of a step, which sharers wait without a place."""
        having = _having_places(running)
        before, self._step = self._without, step
        self._without = {
            sharer: before.get(sharer, step)
            for tops in self._of.values()
            for top, queues in tops.items()
            for sharer in (queues if top in queues else (top, *queues))
            if sharer not in having
        }

    def placed(self, completion: Completion) -> None:
        """Remove a request that gets a place, and end the waits that this ends."""
        self.remove(completion)
        path = completion.request.party.path
        completion.waited = {sharer: self._without.pop(sharer) for sharer in path if sharer in self._without}

    def unplaced(self, completion: Completion, running: Iterable[Completion]) -> None:
        """Go on with the waits that a place ended which was lost before anything was computed there.

        Otherwise one of the adapters of a client that loses such places would begin to wait again and again.
        """
        having = _having_places(running)
        self._without |= {sharer: since for sharer, since in completion.waited.items() if sharer not in having}

    def waited(self, sharer: Sharer) -> int | None:
        """Return for how many steps a sharer has waited without a place; None if it has one, or has just lost it."""
        since = self._without.get(sharer)
        return None if since is None else self._step - since

    def longest(self, background: bool) -> float:
        """Return since which step any of a kind, on the level of clients, waits without a place, or infinity."""
        return min((self._without.get(top, math.inf) for top in self._of[background]), default=math.inf)

    def next(self, promised: Mapping[Sharer, int], among: Iterable[bool], patience: int = 0) -> Completion | None:
        """Return the next request or None, among tenants (False), training (True) or both.

        First come, on either level, those that have waited without a place for `patience` steps, the longest first,
        then the least served (with `promised` service), and of equals the earliest.
        """
        ranked = [
            (self._turn(top, promised, patience), queues)
            for background in among
            for top, queues in self._of[background].items()
        ]
        if not ranked:
            return None
        first, _ = min(ranked, key=itemgetter(0))
        queues = min([queues for turn, queues in ranked if turn == first], key=_earliest)
        return self._first(queues, promised, patience)

    def next_of(self, client: str, promised: Mapping[Sharer, int]) -> Completion | None:
        """Return the next request of one client, or None."""
        queues = self._of[False].get(client)
        return self._first(queues, promised, 0) if queues else None

    def _first(self, queues: _Queues, promised: Mapping[Sharer, int], patience: int) -> Completion:
        def rank(party: Party) -> tuple[tuple[int, int], int]:
            return self._turn(party, promised, patience), queues[party][0].arrival

        return queues[min(queues, key=rank)][0]

    def _turn(self, sharer: Sharer, promised: Mapping[Sharer, int], patience: int) -> tuple[int, int]:
        since = self._without.get(sharer)
        if since is not None and self._step - since >= patience:
            return 0, since
        return 1, self._fairness.service(sharer) + promised.get(sharer, 0)

    def _all(self) -> Iterator[_Queues]:
        for tops in self._of.values():
            yield from tops.values()


def _having_places(running: Iterable[Completion]) -> set[Sharer]:
    return {sharer for each in running for sharer in each.request.party.path}


def _earliest(queues: _Queues) -> int:
    return min(queue[0].arrival for queue in queues.values())
