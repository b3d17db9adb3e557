"""Rows as a table for a terminal."""

from collections.abc import Sequence

from tests.bench.promises import BY_METRIC
from tests.bench.rows import Row

_TITLES = ("metric", "ours", "theirs", "unit", "ratio", "goal", "holds", "against")


def table(rows: Sequence[Row]) -> str:
    """Return a table with a heading, one line per row, and notes below."""
    lines = [_TITLES, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_TITLES))]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    shown.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"  {row.metric}: {row.note}" for row in rows if row.note]
    return "\n".join([*shown, *(["", "notes", *notes] if notes else [])])


def number(value: float | None) -> str:
    """Format a figure with a sensible number of digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    """Format a ratio."""
    return "-" if value is None else f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def _cells(row: Row) -> tuple[str, ...]:
    held = "yes" if row.holds else "NO" if row.ratio is not None else "not measured"
    peerless = BY_METRIC[row.metric].peerless
    ratio, goal = ("-", f"{row.goal} {row.unit}") if peerless else (times(row.ratio), f"{row.goal}x")
    return (row.metric, number(row.ours), number(row.theirs), row.unit, ratio, goal, held, row.peer)
