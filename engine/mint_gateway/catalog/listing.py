"""Pages of a catalog over several beginnings of names, as over one."""

from collections.abc import Mapping, Sequence

from mint_contracts.catalog_reader import CatalogReader, Page
from mint_contracts.entries import Entry


async def page_of(
    reader: CatalogReader,
    base: str,
    *,
    prefixes: Sequence[str],
    labels: Mapping[str, str],
    after: str,
    limit: int,
) -> Page:
    """Entries by name: those after the name `after` that begin with any of `prefixes` and have all of `labels`.

    Prefixes are sorted, and none begins another. As of one prefix a page may be short; only an empty `after` ends it.
    """
    entries: list[Entry] = []
    for prefix in prefixes:
        if after > prefix and not after.startswith(prefix):
            continue  # pages before have had all of it
        page = await reader.page(base, prefix=prefix, labels=labels, after=after, limit=limit - len(entries))
        entries += page.entries
        if page.after:
            return Page(tuple(entries), page.after)
    return Page(tuple(entries), "")
