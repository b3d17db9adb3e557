"""Fair share between adapters: a counter of service for each, after "Fairness in Serving Large Language Models"
(Sheng et al., OSDI 2024).

Who was served least goes first. An adapter that comes (back) starts no lower than the least served of those that are
active: it can neither save up idle time nor escape a debt. Service is in tokens, weighted by what they cost.
"""

from collections import OrderedDict

PROMPT_WEIGHT = 1  # of a token of a prompt: the paper's weights
COMPLETION_WEIGHT = 2  # of a generated token
_REMEMBERED = 1024  # adapters whose counters outlive their requests


class FairShare:
    """Service by adapter ("" is the bare base). An adapter is active while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._service: dict[str, int] = {}  # of active adapters
        self._requests: dict[str, int] = {}
        # Of adapters that were active, the last to leave at the end.
        self._left: OrderedDict[str, int] = OrderedDict()

    @property
    def active(self) -> dict[str, int]:
        """Requests by active adapter."""
        return dict(self._requests)

    def enter(self, adapter: str) -> None:
        """A request came."""
        count = self._requests.get(adapter, 0)
        self._requests[adapter] = count + 1
        if not count:
            own = self._left.pop(adapter, 0)
            self._service[adapter] = max(own, self._floor())

    def leave(self, adapter: str) -> None:
        """A request ended."""
        self._requests[adapter] -= 1
        if not self._requests[adapter]:
            del self._requests[adapter]
            self._left[adapter] = self._service.pop(adapter)
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)

    def charge(self, adapter: str, service: int) -> None:
        """An active adapter got this much service."""
        self._service[adapter] += service

    def service(self, adapter: str) -> int:
        """What an active adapter has had."""
        return self._service[adapter]

    def _floor(self) -> int:
        """What a newcomer has at least: the least of the active ones, or of who left last when there is none."""
        if self._service:
            return min(self._service.values())
        return next(reversed(self._left.values()), 0)
