"""Fair sharing between parties: one service counter for each, after "Fairness in Serving Large Language Models"
(Sheng et al., OSDI 2024).

The least served party goes first. What an adapter's training gets is not charged to its tenants, nor what one client
gets to another. A party that becomes active starts no lower than the least served active one of its kind, tenants or
training, so it can neither save up idle time nor escape a debt. Kinds have floors of their own: beside tenants
training gets few rows, so its counters fall ever further behind theirs, and a tenant that started there would precede
all others.
Service is counted in tokens, weighted by their cost.
"""

from collections import OrderedDict

from mint_engine.scheduling.request import Party

PROMPT_WEIGHT = 1  # per token of a prompt; both weights are the paper's
COMPLETION_WEIGHT = 2  # per generated token
_REMEMBERED = 1024  # parties of each kind whose counters outlive their requests


class FairShare:
    """Service by party (adapter "" is the bare base). One is active while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._service: dict[Party, int] = {}  # of active parties
        self._requests: dict[Party, int] = {}
        # Service of tenants, and of training, that are no longer active, in the order in which they left.
        self._left: dict[bool, OrderedDict[Party, int]] = {False: OrderedDict(), True: OrderedDict()}

    @property
    def active(self) -> dict[Party, int]:
        """Requests by active party."""
        return dict(self._requests)

    def enter(self, party: Party) -> None:
        """Count a new request of a party."""
        count = self._requests.get(party, 0)
        self._requests[party] = count + 1
        if not count:
            own = self._left[party.background].pop(party, 0)
            self._service[party] = max(own, self._floor(party.background))

    def leave(self, party: Party) -> None:
        """Count the end of a request of a party."""
        self._requests[party] -= 1
        if not self._requests[party]:
            del self._requests[party]
            left = self._left[party.background]
            left[party] = self._service.pop(party)
            if len(left) > _REMEMBERED:
                left.popitem(last=False)

    def charge(self, party: Party, service: int) -> None:
        """Add to an active party's service."""
        self._service[party] += service

    def service(self, party: Party) -> int:
        """Return the service that an active party has received."""
        return self._service[party]

    def _floor(self, background: bool) -> int:
        """Return a newcomer's least service: its kind's least, and while that is not active, the other kind's too."""
        least = self._least(background)
        if any(party.background == background for party in self._service):
            return least
        return max(least, self._least(not background))

    def _least(self, background: bool) -> int:
        """Return the service of the least served active party of a kind, else of the last to leave."""
        active = (service for party, service in self._service.items() if party.background == background)
        return min(active, default=next(reversed(self._left[background].values()), 0))
