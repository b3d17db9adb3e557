"""The seam between computing and residency: requests hold an adapter's slot while they run."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.residency.arrival import Arrival


class Held(msgspec.Struct, frozen=True):
    """One revision, pinned in a slot for as long as its holder's context lasts."""

    slot: int
    revision: str  # content digest
    arrival: Arrival | None = None  # by which it comes into its slot, where not all of it was there


class Tenant(msgspec.Struct, frozen=True):
    """What a request in flight takes its slot to hold."""

    slot: int
    adapter: str
    revision: str


class AdapterStatus(msgspec.Struct, frozen=True):
    """One adapter as this engine holds it, or failed to; `failure_reason` is empty when the last load worked."""

    adapter: str
    revision: str
    residency: Tier
    rank: int
    requests_in_flight: int
    failure_reason: str = ""
    failure_message: str = ""


class Holder(Protocol):
    """Keeps adapters resident and lends their slots."""

    def hold(self, adapter: str, source: Source | None = None) -> AbstractAsyncContextManager[Held]:
        """Pin the adapter's current revision in a slot until exit, loading it first if it is cold.

        `source` is where the catalog has it, for an adapter that no wave wants here.

        Where other adapters keep every slot in use, it gets one in its turn (see `turns`).

        Raises a MintError on entry: AdapterNotFound, a Rejected, Overloaded, SourceUnavailable.
        """
        ...

    def states(self) -> list[AdapterStatus]:
        """Every adapter that this engine holds or failed to hold."""
        ...
