"""Fair sharing between clients, and between each one's adapters: a service counter for each, after "Fairness in
Serving Large Language Models" (Sheng et al., OSDI 2024), on two levels as in "Hierarchical Packet Fair Queueing
Algorithms" (Bennett and Zhang, SIGCOMM 1996).

The least served client goes first, and of its parties the least served. So a client gets no more by asking for more
adapters, and each pays for what it asked of an adapter that others ask, too. Parties without a client that has a name
(`Party`) take part as if each were a client.

A sharer, that is a client or a party, starts no lower when it becomes active than the least served active one beside
it, so it can neither save up idle time nor escape a debt. Beside a party are its client's others. A client has beside
it all tenants on its level, but not training, which has a floor of its own: what an adapter's training gets is not
charged to its tenants, and beside tenants it gets few rows, so its counters fall ever further behind theirs, and a
tenant that started there would precede all others. Once a client has no requests at all, its parties are level again.
Service is counted in tokens, weighted by their cost.
"""

from collections import OrderedDict, defaultdict

from mint_engine.scheduling.request import Party, Sharer

PROMPT_WEIGHT = 1  # per token of a prompt; both weights are the paper's
COMPLETION_WEIGHT = 2  # per generated token
_REMEMBERED = 1024  # sharers of each kind on the top level whose counters outlive their requests
_REMEMBERED_WITHIN = 128  # parties of each active client

_Siblings = bool | str  # the sharers of a kind on the top level (True: training), or a client's parties


class FairShare:
    """Service by sharer (adapter "" is the bare base). One is active while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._service: dict[Sharer, int] = {}  # of active sharers
        self._requests: dict[Sharer, int] = {}
        self._active: defaultdict[_Siblings, set[Sharer]] = defaultdict(set)
        # Service of sharers that are no longer active, in the order in which they left.
        self._left: defaultdict[_Siblings, OrderedDict[Sharer, int]] = defaultdict(OrderedDict)

    @property
    def active(self) -> dict[Sharer, int]:
        """Requests by active sharer."""
        return dict(self._requests)

    def enter(self, party: Party) -> None:
        """Count a new request of a party."""
        for sharer in party.path:
            count = self._requests.get(sharer, 0)
            self._requests[sharer] = count + 1
            if not count:
                self._begin(sharer)

    def leave(self, party: Party) -> None:
        """Count the end of a request of a party."""
        for sharer in reversed(party.path):
            self._requests[sharer] -= 1
            if not self._requests[sharer]:
                del self._requests[sharer]
                self._end(sharer)
        if party.client and party.client not in self._requests:
            del self._active[party.client], self._left[party.client]

    def charge(self, party: Party, service: int) -> None:
        """Add to the service of an active party, and of its client."""
        for sharer in party.path:
            self._service[sharer] += service

    def service(self, sharer: Sharer) -> int:
        """Return the service that an active party or client has received."""
        return self._service[sharer]

    def rank(self, party: Party) -> tuple[int, ...]:
        """Return an active party's sort key, by which the least served client's least served party is first."""
        return tuple(self._service[sharer] for sharer in party.path)

    def _begin(self, sharer: Sharer) -> None:
        siblings = _siblings_of(sharer)
        own = self._left[siblings].pop(sharer, 0)
        self._service[sharer] = max(own, self._floor(siblings))
        self._active[siblings].add(sharer)

    def _end(self, sharer: Sharer) -> None:
        siblings = _siblings_of(sharer)
        self._active[siblings].remove(sharer)
        left = self._left[siblings]
        left[sharer] = self._service.pop(sharer)
        if len(left) > (_REMEMBERED if isinstance(siblings, bool) else _REMEMBERED_WITHIN):
            left.popitem(last=False)

    def _floor(self, siblings: _Siblings) -> int:
        """Return a newcomer's least service: its siblings' least, and while a kind is not active, the other's too."""
        least = self._least(siblings)
        if self._active[siblings] or not isinstance(siblings, bool):
            return least
        return max(least, self._least(not siblings))

    def _least(self, siblings: _Siblings) -> int:
        """Return the service of the least served active one of siblings, else of the last to leave."""
        active = (self._service[sharer] for sharer in self._active[siblings])
        return min(active, default=next(reversed(self._left[siblings].values()), 0))


def _siblings_of(sharer: Sharer) -> _Siblings:
    if not isinstance(sharer, Party):
        return False
    return sharer.client or sharer.background
