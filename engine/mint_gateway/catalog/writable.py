"""What a key's holder may write into a base's catalog: pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from mint_contracts.claims import folders
from mint_contracts.entries import Entry
from mint_contracts.errors import PermissionDenied
from mint_contracts.source import Source
from mint_gateway.scope import EVERYTHING, OUT_OF_SCOPE, Scope


@dataclass(frozen=True)
class Writable:
    """The entries that a scope may write: names that it opens, with any source that engines may read.

    Within the base's `store`, which has all tenants' adapters by name, the source must also be a name it opens.
    """

    scope: Scope = EVERYTHING
    store: Source | None = None

    def check(self, entries: Iterable[Entry]) -> None:
        """Raise PermissionDenied, naming the first entry that may not be written."""
        if self.scope.adapters is None:
            return
        store = None if self.store is None else folders(self.store)
        for entry in entries:
            if not self.scope.adapter(entry.name):
                raise PermissionDenied(f"adapter {entry.name!r}", f"is {OUT_OF_SCOPE}")
            if store is None or entry.retired:
                continue
            at = folders(entry.source)
            if at[: len(store)] == store and not self.scope.adapter("/".join(at[len(store) :])):
                message = f"would be fetched from {entry.uri}, which is {OUT_OF_SCOPE}"
                raise PermissionDenied(f"adapter {entry.name!r}", message)


ANYTHING = Writable()
