"""Paging through a catalog by several name prefixes as by one."""

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
    """Return a page of entries by name, after the name `after`, with any of `prefixes` and all of `labels`.

    Prefixes must be sorted, and none may be a prefix of another. A page may be short, as with one prefix; only an
    empty `after` in it says that it is the last.
    """
    entries: list[Entry] = []
    for prefix in prefixes:
        if after > prefix and not after.startswith(prefix):
            continue  # earlier pages have covered this prefix
        page = await reader.page(base, prefix=prefix, labels=labels, after=after, limit=limit - len(entries))
        entries += page.entries
        if page.after:
            return Page(tuple(entries), page.after)
    return Page(tuple(entries), "")
