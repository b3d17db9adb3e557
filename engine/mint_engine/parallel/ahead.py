"""Ranks of this node, started before they are wanted: they import meanwhile what this process imports, for seconds.

Imports nothing heavy, therefore.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mint_engine.parallel.files import Files, make_files
from mint_engine.parallel.rank import Rank


@dataclass(frozen=True)
class Started:
    """All ranks of the first one's node but itself, and what they have in common with it."""

    files: Files
    ranks: list[Rank]


Muster = Callable[[int], Started]  # of how many ranks there are on the node; they are whoever's who calls it


def start_ranks(count: int) -> Started:
    """See `Muster`."""
    files = make_files()
    return Started(files, [Rank(number, files) for number in range(1, count)])


class Ahead:
    """Ranks that are started now, for whoever musters them first; later ones are started when they are mustered."""

    def __init__(self, count: int) -> None:
        self._started = start_ranks(count) if count > 1 else None

    def __call__(self, count: int) -> Started:
        """See `Muster`."""
        started, self._started = self._started, None
        return started or start_ranks(count)
