"""Do the books of residency balance? Checked whenever the engine falls idle, and in tests after every change."""

from collections.abc import Iterator
from typing import Protocol

from mint_engine.residency.books import Books


class Emptiness(Protocol):
    """What tells whether a slot is empty."""

    def is_empty(self, slot: int) -> bool:
        """Nothing of any tenant is left in a slot."""
        ...


def find_imbalance(books: Books, free: list[int], slots: int, memory: Emptiness, *, busy: bool) -> str:
    """What does not add up over slots, references and bytes, or "" when all is well.

    `busy`: some slot is being filled or cleared, and so belongs to nobody now.
    """
    return next(_defects(books, free, slots, memory, busy), "")


def _defects(books: Books, free: list[int], slots: int, memory: Emptiness, busy: bool) -> Iterator[str]:
    taken = {copy.slot: copy for copy in books.copies.values() if copy.slot is not None}
    seats = len([copy for copy in books.copies.values() if copy.slot is not None])
    every = [*taken, *free]
    if len(set(every)) != len(every) or seats != len(taken) or not set(every) <= set(range(slots)):
        yield f"slots are entered wrongly: taken {sorted(taken)}, free {sorted(free)}"
    if not busy and len(every) != slots:
        yield f"{len(taken)} slots taken and {len(free)} free are not {slots}"
    if taken != books.in_slots:
        yield f"slots {sorted(taken)} are taken where {sorted(books.in_slots)} are entered as taken"
    if full := [slot for slot in free if not memory.is_empty(slot)]:
        yield f"slots {full} are free and not empty"
    yield from _of_copies(books)
    for name, tier in (("host", books.host), ("disk", books.disk)):
        if problem := tier.imbalance():
            yield f"the {name} tier: {problem}"


def _of_copies(books: Books) -> Iterator[str]:
    for copy in books.copies.values():
        if copy.users < 0:
            yield f"adapter {copy.adapter!r} has {copy.users} users"
        if (copy.load is not None) != (copy in books.loading):
            yield f"adapter {copy.adapter!r} is not entered as loading, or no longer is"
    if sum(map(len, books.of_adapter.values())) != len(books.copies):
        yield "copies by adapter and by source do not agree"
