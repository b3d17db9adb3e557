"""The names of a catalog's manifest parts, and which parts count. Pure.

| name                                       | what it is                                                    |
|--------------------------------------------|---------------------------------------------------------------|
| FIRST-RANDOM-COUNT.jsonl                   | registered entries: its lines have the sequences from FIRST   |
| FIRST-RANDOM-COUNT-LAST-N.merged.jsonl     | piece N, from 0, of a run: each line has its own sequence     |
| FIRST-RANDOM-COUNT-LAST-N-end.merged.jsonl | a run's last piece                                            |
| FIRST-RANDOM-COUNT.merged.jsonl            | merged by an earlier version: each line has its own, too      |

A run merges all parts from the sequence FIRST to LAST, in the order of adapters' names. Once its last piece exists,
it counts, and replaces every part and run within that range at once; these may be deleted afterwards, in any order,
or stay. A run without its last piece is still being written, or was abandoned, and does not count. One that has its
last piece and lacks others is torn, since somebody has removed them: what is left counts, and replaces nothing. No
run replaces a part whose name does not say where it ends.
"""

import itertools
import re
import secrets
from collections.abc import Iterable

import msgspec

SUFFIX, MERGED = ".jsonl", ".merged"
UNTOLD_ROWS = 10_000  # assumed for a part whose name has no count
_DIGITS = 16

_NAME = re.compile(rf"(\d{{{_DIGITS}}})-([^-.]+)(?:-(\d+))?(?:-(\d{{{_DIGITS}}})-(\d+)(-end)?)?(\.merged)?\.jsonl")


class Span(msgspec.Struct, frozen=True, order=True):
    """A part, or a complete or torn run: it covers the sequences from `first` to `last`."""

    first: int
    last: int
    token: str  # unique to the part or run
    names: tuple[str, ...]
    rows: int
    run: bool  # complete, and in the order of adapters' names
    ends: bool = True  # at `last`; False: the end is unknown, and it may hold later sequences
    torn: bool = False  # what is left of a run

    def within(self, other: "Span") -> bool:
        """Whether the other replaces this one; of two runs over one range, the one with the larger token stays."""
        inside = self.ends and other.first <= self.first <= self.last <= other.last
        if not other.run or self.token == other.token or not inside:
            return False
        same = self.run and (self.first, self.last) == (other.first, other.last)
        return not same or self.token < other.token


class _Name(msgspec.Struct, frozen=True, order=True):
    """The content of a part's name; `number` is that of a piece."""

    first: int
    token: str
    last: int
    number: int
    name: str
    rows: int
    end: bool
    run: bool
    ends: bool = True

    @property
    def span(self) -> Span:
        """The span of this part or piece alone."""
        return Span(self.first, self.last, self.token, (self.name,), self.rows, self.run, self.ends)


def spans(names: Iterable[str]) -> list[Span]:
    """Return the parts and runs that count, the oldest first."""
    every = _every(_parsed(names))
    runs = [span for span in every if span.run]
    return sorted(span for span in every if not any(span.within(run) for run in runs))


def replaced(names: Iterable[str]) -> list[str]:
    """Return the parts, and pieces of complete or incomplete runs, that a complete run has replaced."""
    parsed = _parsed(names)
    runs = [span for span in _every(parsed) if span.run]
    every = [(each.name, each.span) for each in parsed]
    return [name for name, span in every if any(span.within(run) for run in runs)]


def part_name(sequence: int, count: int) -> str:
    """Return a unique name for a part; names sort by sequence."""
    return f"{sequence:0{_DIGITS}d}-{secrets.token_hex(4)}-{count}{SUFFIX}"


def piece_name(first: int, last: int, token: str, number: int, count: int, *, end: bool) -> str:
    """Return the name of one piece of a run."""
    ending = "-end" if end else ""
    return f"{first:0{_DIGITS}d}-{token}-{count}-{last:0{_DIGITS}d}-{number}{ending}{MERGED}{SUFFIX}"


def is_merged(name: str) -> bool:
    """Whether each line of a part has its own sequence."""
    return name.endswith(MERGED + SUFFIX)


def sequence_of(name: str) -> int | None:
    """Return the sequence of a part's first line; None if this is not a part's name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def count_of(name: str) -> int | None:
    """Return how many entries a part has; None if its name does not say."""
    parsed = _parse(name)
    return parsed.rows if parsed is not None and parsed.ends else None


def _parsed(names: Iterable[str]) -> list[_Name]:
    return sorted(parsed for name in names if (parsed := _parse(name)) is not None)


def _every(parsed: Iterable[_Name]) -> list[Span]:
    """Return every part, and every complete or torn run, replaced or not.

    `parsed` is sorted, so a run's pieces are adjacent.
    """
    found = []
    for (first, token, last, run), same in itertools.groupby(
        parsed, lambda each: (each.first, each.token, each.last, each.run)
    ):
        pieces = list(same)
        if not run:
            found += [piece.span for piece in pieces]
        elif pieces[-1].end:
            torn = [piece.number for piece in pieces] != list(range(len(pieces)))
            rows = sum(piece.rows for piece in pieces)
            found.append(Span(first, last, token, tuple(piece.name for piece in pieces), rows, not torn, torn=torn))
    return found


def _parse(name: str) -> _Name | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    first, rows = int(match[1]), UNTOLD_ROWS if match[3] is None else int(match[3])
    if match[4] is not None:
        number, end = int(match[5]), match[6] is not None
        return _Name(first, match[2], int(match[4]), number, name, rows, end, run=True)
    # The names of parts merged by an earlier version, and of those without a count, give only the first sequence.
    ends = match[3] is not None and match[7] is None
    last = first + max(rows, 1) - 1 if ends else first
    return _Name(first, match[2], last, 0, name, rows, end=False, run=False, ends=ends)
