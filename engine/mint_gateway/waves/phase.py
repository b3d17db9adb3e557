"""A wave's phase: pure, from its record and its copies.

It is kubectl's, except that the gateway does not know whether the wave was ready before: it may be Placing here and
Degraded there.
"""

from collections.abc import Iterable

import msgspec

from mint_contracts.errors import by_reason
from mint_contracts.records import EXPIRED, TRAIN, Failure, Tier, WaveRecord

_WAITING = frozenset(("WaitingForCapacity", "WaitingForQuota"))  # the operator's reasons


class Copy(msgspec.Struct, frozen=True):
    """One copy that the plan gave an engine. `lacks` says why it is not ready; empty if it is."""

    adapter: str
    engine: str
    tier: Tier
    failure: Failure | None
    lacks: str


class Copies(msgspec.Struct):
    """Counts of a wave's copies that were placed on an engine, are ready there, or failed."""

    placed: int = 0
    ready: int = 0
    failed: int = 0
    hopeless: int = 0  # of those that failed, the ones that fail until their sources or permissions change

    def count(self, copies: Iterable[Copy]) -> None:
        """Add these copies to the counts."""
        for copy in copies:
            self.placed += 1
            self.ready += not copy.lacks
            self.failed += copy.failure is not None
            self.hopeless += copy.failure is not None and copy.failure.terminal


def wanted_copies(record: WaveRecord) -> int:
    """Return how many copies the wave wants, counted as kubectl shows them: also before admission, 0 once expired."""
    return 0 if record.reason == EXPIRED else record.adapters * record.replicas


def phase(record: WaveRecord, copies: Copies) -> str:
    """Return the phase; of a wave that trains, its phase until the operator has written its training record."""
    trains = record.chosen_by == TRAIN
    if not record.admitted:
        if record.reason == EXPIRED:
            return EXPIRED
        if not record.position and not _waits(record.reason):
            return "Failed"
        return "Queued" if trains else "Pending"
    if trains:
        return "Placing"
    if copies.hopeless:
        return "Failed"
    if copies.failed:
        return "Degraded"
    return "Ready" if copies.ready >= wanted_copies(record) else "Placing"


def _waits(reason: str) -> bool:
    """Return whether a wave without a queue position waits: its error may pass, or it trains (other rules apply)."""
    kind = by_reason(reason)
    return reason in _WAITING if kind is None else not kind.terminal
