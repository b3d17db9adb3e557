"""The interface between computing and residency: a request holds its adapter's slot while it runs."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.residency.arrival import Arrival


class Pinned(msgspec.Struct, frozen=True):
    """One revision, pinned in a slot until its holder's context ends."""

    slot: int
    revision: str  # content digest
    arrival: Arrival | None = None  # its progress, if it was not completely in its slot yet


class Tenant(msgspec.Struct, frozen=True):
    """The adapter and revision that a request in flight expects in its slot."""

    slot: int
    adapter: str
    revision: str


class AdapterStatus(msgspec.Struct, frozen=True):
    """One adapter that this engine holds or failed to load; `failure_reason` is empty if the last load succeeded."""

    adapter: str
    revision: str
    residency: Tier
    rank: int
    requests_in_flight: int
    failure_reason: str = ""
    failure_message: str = ""


class Holder(Protocol):
    """Keeps adapters resident and gives requests their slots."""

    def hold(
        self, adapter: str, source: Source | None = None, client: str = ""
    ) -> AbstractAsyncContextManager[Pinned]:
        """Pin the adapter's current revision in a slot until exit, loading it first if it is cold.

        `source` is the catalog's, for an adapter that no wave wants here. `client` is who asks, empty if clients
        cannot be told apart.

        If other adapters keep every slot in use, it gets one in its turn and its client's (see `slot_turns`).

        Raises a MintError on entry: AdapterNotFound, a Rejected, Overloaded, SourceUnavailable.
        """
        ...

    def states(self) -> list[AdapterStatus]:
        """Return every adapter that this engine holds or failed to load."""
        ...
