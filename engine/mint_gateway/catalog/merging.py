"""Merging neighbouring parts of a catalog's manifests into one equivalent run, piece by piece.

The run counts once its last piece is written (part_names.py); only then are the merged parts deleted. So a merge that
is interrupted, or done by two gateways, loses nothing; a reader that finds a part gone starts again.
"""

import heapq
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress

from mint_contracts.catalog_parts import Parts
from mint_contracts.entries import Row
from mint_contracts.errors import CorruptFile, MintError
from mint_contracts.packed_entries import OLDER, identity
from mint_contracts.part_names import Span, piece_name, spans

PIECE = 3_000  # rows in one piece of a run, or a few more


class UnreadablePart(Exception):
    """A part has an unreadable line: it may be repaired by hand, and must not be deleted."""

    def __init__(self, name: str, error: CorruptFile) -> None:
        super().__init__(str(error))
        self.name = name


class RangeChanged(Exception):
    """A part was added within a merge's range meanwhile; the run must not replace it."""


def kept(rows: Sequence[Row], below: int, *, stored: bool) -> list[Row]:
    """Return those of one name's rows that still matter, oldest first: pure.

    Those are what Redis would keep: the newest row, and the newest rows of up to OLDER other revisions since the name
    was last retired. A retirement is kept if its sequence is at least `below`, since rows from before it may be in
    other parts; and, if the base is `stored` (has an adapter store, which may know the name), while it is in effect.
    """
    found: dict[bytes, Row] = {}
    for row in sorted(rows, key=_sequence, reverse=True):
        if row[1].retired:
            if row[0] >= below or (stored and not found):
                found[b""] = row
            break
        if len(found) <= OLDER:
            found.setdefault(identity(row[1]), row)
    return list(reversed(found.values()))


async def merge(
    parts: Parts,
    window: Sequence[Span],
    below: int,
    *,
    stored: bool,
    go_on: Callable[[], Awaitable[None]],
) -> Span:
    """Merge neighbouring spans into one run and delete them. `below` and `stored` are as in `kept`.

    `go_on` is called before each piece and may raise to end the merge. Raises UnreadablePart,
    RangeChanged, and the store's errors.
    """
    first, last = window[0].first, max(span.last for span in window)
    pieces = _pieces(parts, window, below, stored=stored)
    token, names, count, ending = secrets.token_hex(4), list[str](), 0, False
    try:
        rows = await parts.do(lambda: next(pieces, []))
        while not ending:
            following = await parts.do(lambda: next(pieces, []))
            await go_on()
            if not following:
                await _undisturbed(parts, window, Span(first, last, token, (), 0, run=True))
            ending = not following
            names.append(piece_name(first, last, token, len(names), len(rows), end=ending))
            await parts.write_merged(names[-1], rows)
            count, rows = count + len(rows), following
    except BaseException:
        if not ending:  # otherwise the run may be complete and already in use
            with suppress(MintError):
                for name in names:
                    await parts.delete(name)
        raise
    for name in itertools.chain.from_iterable(span.names for span in window):
        await parts.delete(name)
    return Span(first, last, token, tuple(names), count, run=True)


async def _undisturbed(parts: Parts, window: Sequence[Span], run: Span) -> None:
    """Raise RangeChanged if the run would replace more than the spans that it was made from."""
    known = {name for span in window for name in span.names}
    for span in spans(await parts.names()):
        if span.within(run) and not known.issuperset(span.names):
            raise RangeChanged(f"{span.names[0]} was added meanwhile")


def _pieces(parts: Parts, window: Sequence[Span], below: int, *, stored: bool) -> Iterator[list[Row]]:
    """Yield pieces of the rows to keep, by name; blocking. No name is in two pieces."""
    piece: list[Row] = []
    streams = [_sorted(parts, span) for span in window]
    for _, rows in itertools.groupby(heapq.merge(*streams, key=_place), key=lambda row: row[1].name):
        piece += kept(list(rows), below, stored=stored)
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _sorted(parts: Parts, span: Span) -> Iterator[Row]:
    """Yield a span's rows by name; a run is read one piece at a time, a part as a whole."""
    for name in span.names:
        try:
            rows = parts.read_now(name, strict=True)
        except CorruptFile as error:
            raise UnreadablePart(name, error) from None
        yield from sorted(rows, key=_place)


def _place(row: Row) -> tuple[str, int]:
    return row[1].name, row[0]


def _sequence(row: Row) -> int:
    return row[0]
