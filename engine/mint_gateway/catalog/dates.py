"""Creation dates of adapters, for lists of models. A Redis that does not answer is not waited for."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.errors import MapUnavailable
from mint_contracts.source import Source
from mint_contracts.training_records import trained_since
from mint_gateway.view import MapView


class Dates:
    """Looks up dates. `away` returns whether Redis does not answer."""

    def __init__(self, reader: CatalogReader, away: Callable[[], bool]) -> None:
        self._reader, self._away = reader, away

    async def of(self, adapters: Iterable[tuple[MapView, str]]) -> dict[str, int]:
        """Return dates by adapter name, in seconds since 1970; unknown dates are left out.

        For a revision published by a policy it is when its training began, for any other when it was registered.
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
