"""What the placement map is told of an adapter: what new requests get, and why they do not get what is wanted."""

from typing import TYPE_CHECKING

from mint_contracts import records
from mint_contracts.records import Tier
from mint_contracts.source import Source, parent
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import stale

if TYPE_CHECKING:
    from mint_engine.residency.books import Books


def tell(books: "Books", name: str) -> records.Held | None:
    """One adapter as the map must know it; None where there is nothing to tell.

    Where a wave's source failed to load while an older revision serves on, the wave's source is told with that
    failure, and with the tier and revision that do serve: the wave is not Ready, and requests still find it here.
    Failures of adapters that no wave wants are left out: anybody can ask for a name that does not exist.
    What calls have published is told wherever it is: nobody but engines tells of it.
    """
    announced = books.announced.get(name) if name not in books.wants else None
    told = None if announced is None else records.Held(name, announced, Tier.REMOTE, published=True)
    for copy in books.of_adapter.get(name, ()):
        if announced not in {None, copy.formerly or copy.source}:
            continue  # it may be what the catalog has by that name, and who asks by its word finds it
        if books.tier(copy) is not Tier.REMOTE and not stale(books.view(copy), books.wants, books.store):
            told = _held(books, copy, copy.source, None)
    want = books.wants.get(name)
    if want is not None:
        target, serving = books.copies.get((name, want.source)), books.current.get(name)
        shown = serving if serving is not None and books.tier(serving) is not Tier.REMOTE else target
        failure = target.failure if target is not None else None
        own = name in books.own
        if shown is not None and (books.tier(shown) is not Tier.REMOTE or failure is not None or own):
            told = _held(books, shown, want.source if failure else shown.source, failure)
    return told


def _held(books: "Books", copy: Copy, source: Source, failure: records.Failure | None) -> records.Held:
    """What a source held before it changed is told as that source's: the map knows no other name for it."""
    known = copy.formerly if copy.formerly is not None and source == copy.source else source
    own = copy.adapter in books.own and parent(known) == parent(books.wants[copy.adapter].source)
    own = own or (copy.adapter not in books.wants and known == books.announced.get(copy.adapter))
    return records.Held(
        adapter=copy.adapter,
        source=known,
        tier=books.tier(copy),
        revision=copy.revision,
        rank=copy.rank,
        failure=failure,
        bytes=copy.bytes,
        published=own,
    )
