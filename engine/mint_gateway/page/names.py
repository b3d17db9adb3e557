"""Completing adapter names as a person types, from the map and the catalogs."""

import asyncio
from collections.abc import Iterator

from mint_contracts.errors import MapUnavailable
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.listing import page_of
from mint_gateway.mirror import Mirror
from mint_gateway.page.pages import Asked
from mint_gateway.scope import granted
from mint_gateway.view import MapView

MOST_CATALOGS = 8  # asked for one completion


class Names:
    """Finds names within the key's scope."""

    def __init__(self, mirror: Mirror, catalogs: Catalogs) -> None:
        self._mirror, self._catalogs = mirror, catalogs

    async def beginning(self, asked: Asked) -> list[str]:
        """Return the first matching names, sorted. Leaves out catalogs that cannot be read. Raises MapUnavailable."""
        views = self._mirror.known()
        kept = [base for base, view in sorted(views.items()) if view.record and view.record.catalog]
        catalogued = await asyncio.gather(*(self._catalogued(base, asked) for base in kept[:MOST_CATALOGS]))
        found = {name for of in catalogued for name in of}
        for view in views.values():
            found.update(asked.of(_placed(view))[0])
            await asyncio.sleep(0)
        return asked.of(found)[0]

    async def _catalogued(self, base: str, asked: Asked) -> list[str]:
        prefixes = granted.get().prefixes(asked.prefix)
        reader = self._catalogs.reader
        try:
            page = await page_of(reader, base, prefixes=prefixes, labels={}, after=asked.after, limit=asked.limit)
        except MapUnavailable:
            return []
        return [entry.name for entry in page.entries]


def _placed(view: MapView) -> Iterator[str]:
    yield from view.placements
    yield from view.published
