"""What a key's holder may write into a base's catalog: pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from mint_contracts.claims import folders
from mint_contracts.entries import Entry
from mint_contracts.errors import PermissionDenied
from mint_contracts.source import Source, child
from mint_contracts.training_records import REVISIONS
from mint_gateway.security.scope import EVERYTHING, OUT_OF_SCOPE, Scope


@dataclass(frozen=True)
class Writable:
    """The entries that a scope may write: names that it opens, with any source that engines may read.

    The base's `store` has all tenants' adapters by name, and its `training` store their revisions: there, the source
    must also be a name that it opens.
    """

    scope: Scope = EVERYTHING
    store: Source | None = None
    training: Source | None = None

    def check(self, entries: Iterable[Entry]) -> None:
        """Raise PermissionDenied, naming the first entry that may not be written."""
        if self.scope.adapters is None:
            return
        revisions = None if self.training is None else child(self.training, REVISIONS)
        places = [folders(each) for each in (self.store, revisions) if each is not None]
        for entry in entries:
            if not self.scope.adapter(entry.name):
                raise PermissionDenied(f"adapter {entry.name!r}", f"is {OUT_OF_SCOPE}")
            if not places or entry.retired:
                continue
            at = folders(entry.source)
            names = ("/".join(at[len(place) :]) for place in places if at[: len(place)] == place)
            if not all(map(self.scope.adapter, names)):
                message = f"would be fetched from {entry.uri}, which is {OUT_OF_SCOPE}"
                raise PermissionDenied(f"adapter {entry.name!r}", message)


ANYTHING = Writable()
