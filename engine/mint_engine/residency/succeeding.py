"""Handles a source whose files have changed: the old copy serves until the new state is here, as with any revision.

The old copy is renamed to a source that does not exist, so that the source's own name is free for the new state.
"""

from mint_contracts.source import Source
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import stale


def succeed(books: Books, copy: Copy) -> Copy:
    """Enter and return a new copy for what the source holds now. `copy` must not be loading."""
    source, key, serves = copy.source, copy.key, _answers(books, copy)
    del books.copies[key]
    copy.source, copy.formerly = Source(source.uri, f"{copy.revision} as of {books.tick()}"), source
    copy.state = None  # it is not watched any more
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
    """Return whether new requests get this copy, which is in memory."""
    current = books.current.get(copy.adapter)
    return current is copy or (current is None and not stale(books.view(copy), books.wants, books.store))
