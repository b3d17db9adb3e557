"""Compaction: the cost of rereading a catalog stays proportional to its live entries, not to its history.

Nothing that still matters is lost: merging.py says what is kept, and how a run replaces the parts it was made from.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence

import structlog

from mint_contracts.catalog_parts import Parts
from mint_contracts.part_names import Span, replaced, spans
from mint_gateway.catalog import merging
from mint_gateway.catalog.merging import RangeChanged, UnreadablePart, merge

GROWN = 1.5  # more rows than this multiple of the live ones are too many
SLACK = 5_000  # rows allowed beyond that, since reading them takes only a moment
SHARE = 16  # rewrite the oldest run only for at least 1/16 of its rows in newer ones: bounds the cost per row
ENOUGH = 64  # from this many parts and runs on, merging them is worthwhile
HELD = 60_000  # most rows in a merge's memory at once: about 50 MB

_log = structlog.get_logger()


def due(counted: Sequence[Span], rows: int, live: int) -> Sequence[Span]:
    """Choose the neighbouring spans to merge now, oldest first; empty if none need it: pure.

    There are `rows` in all, of which `live` matter. If too many do not, everything becomes one run; if there are many
    parts, they become fewer. What does not fit in one merge is reduced by the cheapest merges first.
    """
    newer = sum(span.rows for span in counted[1:])
    stale = rows > GROWN * live + SLACK and newer * SHARE >= counted[0].rows
    if len(counted) < 2 or not (stale or len(counted) >= ENOUGH):
        return ()
    if stale and sum(map(_held, counted)) <= HELD:
        return counted
    return min(_windows(counted), key=_cost, default=())


async def compact(
    parts: Parts,
    names: Sequence[str],
    floor: int,
    live: int,
    horizon: int,
    *,
    stored: bool,
    go_on: Callable[[], Awaitable[None]],
) -> int:
    """Merge what is `due` up to the sequence `floor`, up to which Redis has everything. Return the number of merges.

    Unreadable parts and torn runs stay as they are. `horizon` is as in `below`, `stored` and `go_on` as in `merge`.
    """
    for name in replaced(names):
        await parts.delete(name)
    counted, merged = spans(names), 0
    spoilt = {name for span in counted if span.torn for name in span.names}
    while window := _first_due(counted, floor, live, spoilt):
        begin = counted.index(window[0])
        end = begin + len(window)
        try:
            run = await merge(parts, window, below(counted, begin, end, horizon), stored=stored, go_on=go_on)
        except UnreadablePart as error:
            spoilt.add(error.name)
            _log.warning("catalog part cannot be merged and is left as it is", part=error.name, error=str(error))
            continue
        except RangeChanged as error:
            _log.info("catalog parts will be merged later", reason=str(error))
            break
        counted[begin:end] = [run]
        merged += 1
        before = sum(span.rows for span in window)
        _log.info("catalog parts merged", parts=len(window), entries=before, kept=run.rows)
    return merged


def below(counted: Sequence[Span], begin: int, end: int, horizon: int) -> int:
    """Return the sequence before which a merge of these neighbours may forget retirements: pure.

    It is 0 unless the merge includes everything older, since an older row outside it would count again. Retirements
    since `horizon` are kept because a Redis that comes back may have an earlier state.
    """
    if begin or not all(span.ends for span in counted[:end]):
        return 0
    return min([horizon, *[span.first for span in counted[end:]]])


def _first_due(counted: Sequence[Span], floor: int, live: int, spoilt: set[str]) -> Sequence[Span]:
    settled = [span for span in counted if span.first <= floor]
    rows = sum(span.rows for span in settled)
    found = (due(each, rows, live) for each in _stretches(settled, spoilt))
    return next(filter(None, found), ())


def _stretches(counted: Sequence[Span], spoilt: set[str]) -> Iterator[Sequence[Span]]:
    """Yield the stretches of neighbours between spoilt spans."""
    found: list[Span] = []
    for span in counted:
        if spoilt.isdisjoint(span.names):
            found.append(span)
        elif found:
            yield found
            found = []
    if found:
        yield found


def _windows(counted: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Yield for each span the longest window from it on that a merge can hold, if it has at least two spans."""
    held, end = 0, 0
    for begin, span in enumerate(counted):
        while end < len(counted) and held + _held(counted[end]) <= HELD:
            held += _held(counted[end])
            end += 1
        if end - begin > 1:
            yield counted[begin:end]
        if end == begin:
            end += 1
        else:
            held -= _held(span)


def _held(span: Span) -> int:
    return min(span.rows, merging.PIECE) if span.run else span.rows


def _cost(window: Sequence[Span]) -> float:
    """Return the rows rewritten per part removed."""
    return sum(span.rows for span in window) / (len(window) - 1)
