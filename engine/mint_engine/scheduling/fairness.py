"""Fair sharing between adapters: one service counter for each, after "Fairness in Serving Large Language Models"
(Sheng et al., OSDI 2024).

The least served adapter goes first. An adapter that becomes active starts no lower than the least served active one,
so it can neither save up idle time nor escape a debt. Service is counted in tokens, weighted by their cost.
"""

from collections import OrderedDict

PROMPT_WEIGHT = 1  # per token of a prompt; both weights are the paper's
COMPLETION_WEIGHT = 2  # per generated token
_REMEMBERED = 1024  # adapters whose counters outlive their requests


class FairShare:
    """Service by adapter ("" is the bare base). An adapter is active while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._service: dict[str, int] = {}  # of active adapters
        self._requests: dict[str, int] = {}
        # Service of adapters that are no longer active, in the order in which they left.
        self._left: OrderedDict[str, int] = OrderedDict()

    @property
    def active(self) -> dict[str, int]:
        """Requests by active adapter."""
        return dict(self._requests)

    def enter(self, adapter: str) -> None:
        """Count a new request of an adapter."""
        count = self._requests.get(adapter, 0)
        self._requests[adapter] = count + 1
        if not count:
            own = self._left.pop(adapter, 0)
            self._service[adapter] = max(own, self._floor())

    def leave(self, adapter: str) -> None:
        """Count the end of a request of an adapter."""
        self._requests[adapter] -= 1
        if not self._requests[adapter]:
            del self._requests[adapter]
            self._left[adapter] = self._service.pop(adapter)
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)

    def charge(self, adapter: str, service: int) -> None:
        """Add to an active adapter's service."""
        self._service[adapter] += service

    def service(self, adapter: str) -> int:
        """Return the service that an active adapter has received."""
        return self._service[adapter]

    def _floor(self) -> int:
        """Return a newcomer's least service: that of the least served active adapter, else of the last to leave."""
        if self._service:
            return min(self._service.values())
        return next(reversed(self._left.values()), 0)
