"""What placement policies read and change: one base's copies while their places are computed."""

from collections.abc import Callable, Mapping, Sequence, Set

import msgspec

from mint_contracts.records import Place, Placement
from mint_operator.placing.board import Board
from mint_operator.planning.adapters import Want
from mint_operator.planning.engines import Engine

Warmth = Mapping[str, Mapping[str, int]]  # adapter -> engine -> how warm it is there


class Table(msgspec.Struct):
    """Mutable, and local to one plan. `needy` are adapters that lack a good copy, the most urgent first.

    `placed` are the places of the adapters being considered; `settled` those of all others, moved only to make room.
    `demand` is the number of requests in flight for each adapter; `hot` are adapters that may have spare copies.
    `lowest` is the lowest priority of any wave.
    """

    board: Board
    wants: Mapping[str, Want]
    needy: list[str]
    placed: dict[str, list[Place]]
    settled: Mapping[str, Placement]
    warmth: Warmth
    demand: Mapping[str, float] = {}
    hot: Sequence[str] = ()
    lowest: int = 0

    def places(self, adapter: str) -> Sequence[Place]:
        """Return an adapter's places as they are now."""
        placed = self.placed.get(adapter)
        return self.settled[adapter].places if placed is None else placed

    def add(self, adapter: str, place: Place) -> None:
        """Add a copy at `place`."""
        self.board.put(place.engine, adapter, place.residency)
        self.placed[adapter].append(place)

    def drop(self, adapter: str, index: int) -> None:
        """Take away the copy at `index`."""
        place = self.placed[adapter].pop(index)
        self.board.take(place.engine, adapter)

    def move(self, adapter: str, index: int, place: Place) -> None:
        """Move the copy at `index` to `place`."""
        if adapter not in self.placed:
            self.placed[adapter] = list(self.settled[adapter].places)
        places = self.placed[adapter]
        self.board.take(places[index].engine, adapter)
        self.board.put(place.engine, adapter, place.residency)
        places[index] = place


def lacking(board: Board, want: Want, places: Sequence[Place]) -> int:
    """Return how many more copies are wanted; those on engines that are about to be removed do not count."""
    going = sum(board.leaving(place.engine) for place in places) if board.any_leaving else 0
    return want.replicas - len(places) + going


def going(board: Board, places: Sequence[Place]) -> bool:
    """Whether any of these is on an engine that is about to be removed."""
    return board.any_leaving and any(board.leaving(place.engine) for place in places)


Policy = Callable[[Table], None]
"""One policy: it improves the copies of all needy adapters, in their order. Policies run one after another."""


def warmth(engines: Sequence[Engine], wants: Mapping[str, Want], names: Set[str]) -> dict[str, dict[str, int]]:
    """Return how warm engines hold the adapters of these names, if from the wanted source."""
    found: dict[str, dict[str, int]] = {}
    for engine in engines:
        for name in engine.held.keys() & names:
            held = engine.held[name]
            if held.tier.warmth > 0 and held.source == wants[name].source:
                found.setdefault(name, {})[engine.name] = held.tier.warmth
    return found
