"""A source whose files have changed: what it held serves on until the new state is here, as with any new revision.

The old copy goes on under a name of its own, which no source has; the source's own name is then the new state's.
"""

from typing import TYPE_CHECKING

from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import stale

if TYPE_CHECKING:
    from mint_engine.residency.books import Books


def succeed(books: "Books", copy: Copy) -> Copy:
    """Enter a copy for what its source holds now; nothing loads `copy` meanwhile. Returns the new one."""
    source, key, serves = copy.source, copy.key, _answers(books, copy)
    del books.copies[key]
    copy.source, copy.formerly = Source(source.uri, f"{copy.revision} as of {books.tick()}"), source
    copy.state = None  # it is not looked at any more
    books.copies[copy.key] = copy
    if (packed := books.host.get(key)) is not None:
        books.host.drop(key)
        books.evicted(books.host.put(copy.key, packed) or ())
    successor = books.copy_of(key)
    successor.told, copy.told = copy.told, False
    if serves:
        books.current[copy.adapter] = copy
    books.changed(copy)
    return successor


def serves_on(books: "Books", copy: Copy) -> bool:
    """Whether a copy still answers for its source, whose newer state is not as warm yet."""
    if copy.formerly is None or books.tier(copy).warmth < Tier.HOST.warmth:
        return False
    successor = books.copies.get((copy.adapter, copy.formerly))
    return successor is None or not successor.revision or books.tier(successor).warmth < books.tier(copy).warmth


def _answers(books: "Books", copy: Copy) -> bool:
    """Whether new requests get this copy, which is in memory."""
    current = books.current.get(copy.adapter)
    return current is copy or (current is None and not stale(books.view(copy), books.wants, books.store))
