"""Compaction: what reading a catalog anew takes stays in proportion to what there is, not to all that ever was.

Nothing that still means anything is lost: merging.py says what is kept, and how a run replaces what it was made from.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence

import structlog

from mint_contracts.catalog_parts import Parts
from mint_contracts.part_names import Span, replaced, spans
from mint_gateway.catalog import merging
from mint_gateway.catalog.merging import Overtaken, Spoilt, merge

GROWN = 1.5  # times the rows that mean something: so many are too many
SLACK = 5_000  # rows beyond that: reading them takes a moment, whatever they are
SHARE = 16  # the oldest run is not rewritten for less than one in so many of its rows: what a row costs is bounded
ENOUGH = 64  # parts and runs are worth making fewer
HELD = 60_000  # rows held at once by a merge, at most: some 50 MB

_log = structlog.get_logger()


def due(counted: Sequence[Span], rows: int, live: int) -> Sequence[Span]:
    """Which neighbours of those given to merge now, the oldest first; none where all is well: pure.

    `rows` are there in all, of which `live` mean something. Where too many do not, everything becomes one run; where
    there are many parts, few. What cannot be merged at once becomes less by the cheapest merges first.
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
    """Merge what is `due` up to the sequence `floor`, all of which is in Redis. Returns how many merges were made.

    Parts that are spoilt stay as they are. `horizon` as of `below`, `stored` and `go_on` as of `merge`.
    """
    for name in replaced(names):
        await parts.delete(name)
    counted, merged, spoilt = spans(names), 0, set[str]()
    while window := _first_due(counted, floor, live, spoilt):
        begin = counted.index(window[0])
        end = begin + len(window)
        try:
            run = await merge(parts, window, below(counted, begin, end, horizon), stored=stored, go_on=go_on)
        except Spoilt as error:
            spoilt.add(error.name)
            _log.warning("catalog part cannot be merged and is left as it is", part=error.name, error=str(error))
            continue
        except Overtaken as error:
            _log.info("catalog parts will be merged later", reason=str(error))
            break
        counted[begin:end] = [run]
        merged += 1
        before = sum(span.rows for span in window)
        _log.info("catalog parts merged", parts=len(window), entries=before, kept=run.rows)
    return merged


def below(counted: Sequence[Span], begin: int, end: int, horizon: int) -> int:
    """The sequence before which a merge of these neighbours may forget that names were retired: pure.

    What is older is all in the merge then, and may not be left beside the run. Of what was retired since `horizon` a
    Redis that comes back may know an earlier state still.
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
    """Neighbours between those that stay as they are."""
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
    """For each span the longest window of neighbours from it on that a merge can hold, if it has two."""
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
    """Rows that are rewritten for each part that there is less."""
    return sum(span.rows for span in window) / (len(window) - 1)
