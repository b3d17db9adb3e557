"""Fair sharing between parties: one service counter for each, after "Fairness in Serving Large Language Models"
(Sheng et al., OSDI 2024).

The least served party goes first. What an adapter's training gets is not charged to its tenants. A party that becomes
active starts no lower than the least served active one, so it can neither save up idle time nor escape a debt.
Service is counted in tokens, weighted by their cost.
"""

from collections import OrderedDict

from mint_engine.scheduling.request import Party

PROMPT_WEIGHT = 1  # per token of a prompt; both weights are the paper's
COMPLETION_WEIGHT = 2  # per generated token
_REMEMBERED = 1024  # parties whose counters outlive their requests


class FairShare:
    """Service by party (adapter "" is the bare base). One is active while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._service: dict[Party, int] = {}  # of active parties
        self._requests: dict[Party, int] = {}
        # Service of parties that are no longer active, in the order in which they left.
        self._left: OrderedDict[Party, int] = OrderedDict()

    @property
    def active(self) -> dict[Party, int]:
        """Requests by active party."""
        return dict(self._requests)

    def enter(self, party: Party) -> None:
        """Count a new request of a party."""
        count = self._requests.get(party, 0)
        self._requests[party] = count + 1
        if not count:
            own = self._left.pop(party, 0)
            self._service[party] = max(own, self._floor())

    def leave(self, party: Party) -> None:
        """Count the end of a request of a party."""
        self._requests[party] -= 1
        if not self._requests[party]:
            del self._requests[party]
            self._left[party] = self._service.pop(party)
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)

    def charge(self, party: Party, service: int) -> None:
        """Add to an active party's service."""
        self._service[party] += service

    def service(self, party: Party) -> int:
        """Return the service that an active party has received."""
        return self._service[party]

    def _floor(self) -> int:
        """Return a newcomer's least service: that of the least served active party, else of the last to leave."""
        if self._service:
            return min(self._service.values())
        return next(reversed(self._left.values()), 0)
