"""Completing adapter names as a person types, from the map and the catalogs."""

import asyncio
from contextlib import suppress

from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.errors import MapUnavailable
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.listing import page_of
from mint_gateway.first_names import first_names
from mint_gateway.mirror import Mirror
from mint_gateway.page.pages import Asked
from mint_gateway.security.scope import granted

CATALOGS_AT_ONCE = 8  # asked for one completion
CATALOGS_S = 1.0  # for all catalogs together: a person types on meanwhile


class Names:
    """Finds names within the key's scope."""

    def __init__(self, mirror: Mirror, catalogs: Catalogs) -> None:
        self._mirror, self._catalogs = mirror, catalogs

    async def beginning(self, asked: Asked) -> list[str]:
        """Return the first matching names, sorted.

        Leaves out catalogs that cannot be read, or have not answered after CATALOGS_S. Raises MapUnavailable.
        """
        views = dict(self._mirror.views_in_scope())  # so that each view is restricted only once
        free = asyncio.Semaphore(CATALOGS_AT_ONCE)
        kept = [base for base, view in views.items() if view.has_catalog]
        catalogued = set[str]()
        with suppress(TimeoutError):
            async with asyncio.timeout(CATALOGS_S):
                await gather_or_cancel(self._find(base, asked, free, catalogued) for base in kept)
        mapped = [names for view in views.values() for names in (view.placements, view.published)]
        placed = await first_names(mapped, asked.after, asked.limit, asked.prefix)
        return asked.of({*placed, *catalogued})[0]

    async def _find(self, base: str, asked: Asked, free: asyncio.Semaphore, found: set[str]) -> None:
        """Add the matching names of a base's catalog to `found`."""
        prefixes = granted.get().prefixes(asked.prefix)
        reader = self._catalogs.reader
        async with free:
            with suppress(MapUnavailable):
                page = await page_of(reader, base, prefixes=prefixes, labels={}, after=asked.after, limit=asked.limit)
                found.update(entry.name for entry in page.entries)
