"""When adapters were made, for those who list them: nobody waits for a Redis that is silent."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.errors import MapUnavailable
from mint_contracts.source import Source
from mint_contracts.training_records import trained_since
from mint_gateway.view import MapView


class Dates:
    """What tells of it. `away` tells that Redis does not answer."""

    def __init__(self, reader: CatalogReader, away: Callable[[], bool]) -> None:
        self._reader, self._away = reader, away

    async def of(self, adapters: Iterable[tuple[MapView, str]]) -> dict[str, int]:
        """By name, in seconds since 1970, each over one base; what nobody knows of is left out.

        Of a revision that a policy has published when it began to be trained, of another when it was registered.
        """
        found: dict[str, int] = {}
        asked: dict[str, dict[str, Source]] = {}
        for view, name in adapters:
            source = view.source(name)
            if source is None:
                continue
            if trained := trained_since(source):
                found[name] = trained
            elif view.record and view.record.catalog:
                asked.setdefault(view.base, {})[name] = source
        for base, sources in asked.items():
            if not self._away():
                with suppress(MapUnavailable):
                    found |= await self._reader.registered(base, sources)
        return found
