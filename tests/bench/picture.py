"""Rows as a picture of each promise's ratio relative to its goal: plain SVG, for a browser or a README."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.promises import BY_METRIC
from tests.bench.rows import Row
from tests.bench.table import number, times

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 1000, 330, 260, 34, 56
_REACH = math.log(8.0)  # a bar ends at eight times better or worse than the goal
_KEPT, _BROKEN, _UNKNOWN, _INK, _FAINT = "#2f7d4f", "#b8442e", "#9a9a9a", "#222", "#777"


def picture(title: str, rows: Sequence[Row]) -> str:
    """Return an SVG with a bar per row: how far beyond its goal (the middle line) the ratio is, in log scale."""
    height = _TOP + _LINE * len(rows) + 30
    middle, half = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, (_WIDTH - _LEFT - _RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(16, 28, title, _INK, size=17),
        _text(middle, 46, "goal", _FAINT, anchor="middle", size=11),
        f'<line x1="{middle}" y1="{_TOP - 4}" x2="{middle}" y2="{height - 26}" stroke="{_FAINT}"/>',
        _text(_LEFT, height - 10, "8x short of it", _FAINT, size=11),
        _text(_WIDTH - _RIGHT, height - 10, "8x beyond it", _FAINT, anchor="end", size=11),
    ]
    for at, row in enumerate(rows):
        parts += _bar(row, _TOP + at * _LINE, middle, half)
    return "\n".join([*parts, "</svg>\n"])


def beyond_goal(row: Row) -> float | None:
    """Return how many times better than its goal a row's ratio is: below 1 if it falls short, None if unmeasured."""
    if row.ratio is None or row.ratio <= 0:
        return None
    promise = BY_METRIC[row.metric]
    return row.ratio / promise.bound if promise.sign == ">=" else promise.bound / row.ratio


def _bar(row: Row, top: float, middle: float, half: float) -> list[str]:
    beyond, base = beyond_goal(row), top + 17
    told = f"{times(row.ratio)} (goal {row.goal}x)"
    figures = f"{number(row.ours)} : {number(row.theirs)} {row.unit}, {row.peer}"
    if BY_METRIC[row.metric].peerless:
        told, figures = f"{number(row.ours)} {row.unit} (goal {row.goal})", row.peer
    parts = [
        _text(_LEFT - 12, base, row.metric, _INK, anchor="end"),
        _text(_WIDTH - _RIGHT + 12, base - 6, told, _colour(row)),
        _text(_WIDTH - _RIGHT + 12, base + 8, figures, _FAINT, size=10),
    ]
    if beyond is not None:
        reach = max(-1.0, min(1.0, math.log(max(beyond, 1e-9)) / _REACH)) * half
        left, width = min(middle, middle + reach), max(1.5, abs(reach))
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="18" rx="2" fill="{_colour(row)}"/>'
        )
    return parts


def _colour(row: Row) -> str:
    return _UNKNOWN if row.ratio is None else _KEPT if row.holds else _BROKEN


def _text(x: float, y: float, text: str, fill: str, *, anchor: str = "start", size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
    )
