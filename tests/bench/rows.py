"""A benchmark's results: one row per promise, from several rounds of both sides."""

import math
from collections.abc import Sequence
from statistics import median

import msgspec

from tests.bench.promises import BY_METRIC


class Row(msgspec.Struct, frozen=True):
    """One promise as measured. If it could not be, `theirs` and `ratio` are null and `holds` is false.

    For a promise without a peer, `theirs` is null and `ratio` is the figure itself.
    """

    metric: str
    unit: str
    ours: float | None
    theirs: float | None
    peer: str
    ratio: float | None
    goal: str
    holds: bool
    note: str = ""


def measured(metric: str, ours: Sequence[float], theirs: Sequence[float] = (), note: str = "") -> Row:
    """Return a row with the medians of both sides' rounds and their ratio (of ours alone without a peer)."""
    promise, our_median = BY_METRIC[metric], median(ours)
    their_median = None if promise.peerless else median(theirs)
    ratio = promise.ratio(our_median, their_median or 0.0)
    spread = f"{len(ours)} rounds, ours {_span(ours)}" + (f", theirs {_span(theirs)}" if theirs else "")
    return Row(
        metric=metric,
        unit=promise.unit,
        ours=our_median,
        theirs=their_median,
        peer=promise.peer,
        ratio=ratio,
        goal=promise.goal,
        holds=promise.holds(ratio),
        note="; ".join(filter(None, (spread, note))),
    )


def unmeasured(metric: str, note: str, ours: Sequence[float] = ()) -> Row:
    """Return the row of a promise that could not be measured, with the reason."""
    promise = BY_METRIC[metric]
    return Row(
        metric=metric,
        unit=promise.unit,
        ours=median(ours) if ours else None,
        theirs=None,
        peer=promise.peer,
        ratio=None,
        goal=promise.goal,
        holds=False,
        note=note,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the least value that `percent` of all do not exceed."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.4g}-{max(values):.4g}"
