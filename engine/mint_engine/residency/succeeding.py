"""A source whose files have changed: what it held serves on until the new state is here, as with any new revision.

The old copy goes on under a name of its own, which no source has; the source's own name is then the new state's.
"""

from mint_contracts.source import Source
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import stale


def succeed(books: Books, copy: Copy) -> Copy:
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
    successor.requested, copy.requested = copy.requested, False
    if serves:
        books.current[copy.adapter] = copy
    books.changed(copy)
    return successor


def _answers(books: Books, copy: Copy) -> bool:
    """Whether new requests get this copy, which is in memory."""
    current = books.current.get(copy.adapter)
    return current is copy or (current is None and not stale(books.view(copy), books.wants, books.store))
