"""Completing adapter names as a person types, from the map and the catalogs."""

import asyncio
import itertools

from mint_contracts.errors import MapUnavailable
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.listing import page_of
from mint_gateway.first_names import first_names
from mint_gateway.mirror import Mirror
from mint_gateway.page.pages import Asked
from mint_gateway.scope import granted

CATALOGS_AT_ONCE = 8  # asked for one completion


class Names:
    """Finds names within the key's scope."""

    def __init__(self, mirror: Mirror, catalogs: Catalogs) -> None:
        self._mirror, self._catalogs = mirror, catalogs

    async def beginning(self, asked: Asked) -> list[str]:
        """Return the first matching names, sorted. Leaves out catalogs that cannot be read. Raises MapUnavailable."""
        views = dict(self._mirror.views_in_scope())  # so that each view is restricted only once
        free = asyncio.Semaphore(CATALOGS_AT_ONCE)
        kept = [base for base, view in views.items() if view.has_catalog]
        catalogued = await asyncio.gather(*(self._catalogued(base, asked, free) for base in kept))
        mapped = [names for view in views.values() for names in (view.placements, view.published)]
        placed = await first_names(mapped, asked.after, asked.limit, asked.prefix)
        return asked.of({*placed, *itertools.chain.from_iterable(catalogued)})[0]

    async def _catalogued(self, base: str, asked: Asked, free: asyncio.Semaphore) -> list[str]:
        prefixes = granted.get().prefixes(asked.prefix)
        reader = self._catalogs.reader
        try:
            async with free:
                page = await page_of(reader, base, prefixes=prefixes, labels={}, after=asked.after, limit=asked.limit)
        except MapUnavailable:
            return []
        return [entry.name for entry in page.entries]
