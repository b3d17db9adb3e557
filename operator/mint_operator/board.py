"""The engines of one base while a placement is worked out: copies on each, slots taken, and who has least.

A heap for each kind of question keeps the choice of the least loaded engine logarithmic in the number of engines.
Entries go stale when an engine's load changes; they are dropped as they surface.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence

from mint_contracts.records import Tier
from mint_operator.engines import Engine


class Board:
    """Mutable, and local to one call of `placement.place`."""

    def __init__(self, engines: Sequence[Engine], slots: int) -> None:
        self._ordinals = {engine.name: engine.ordinal for engine in engines}
        self._names = {engine.ordinal: engine.name for engine in engines}
        self._lost = {engine.name for engine in engines if engine.lost}
        self._slots = slots
        self._copies = dict.fromkeys(self._ordinals, 0)
        self._taken = dict.fromkeys(self._ordinals, 0)
        self._heaps: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
        for lost in (False, True):
            entries = [(0, engine.ordinal) for engine in engines if engine.lost is lost]
            self._heaps[lost, True], self._heaps[lost, False] = entries, list(entries)

    def __contains__(self, engine: str) -> bool:
        return engine in self._ordinals

    def __len__(self) -> int:
        return len(self._ordinals)

    def lost(self, engine: str) -> bool:
        """Whether the engine has been away for too long."""
        return engine in self._lost

    def copies(self, engine: str) -> int:
        """Copies given to an engine so far."""
        return self._copies[engine]

    def fits(self, engine: str, residency: Tier) -> bool:
        """Whether one more copy fits: only Device copies take a slot."""
        return residency is not Tier.DEVICE or self._taken[engine] < self._slots

    def put(self, engine: str, residency: Tier) -> None:
        """Give a copy to an engine."""
        self._change(engine, residency, 1)

    def take(self, engine: str, residency: Tier) -> None:
        """Take a copy from an engine."""
        self._change(engine, residency, -1)

    def least(
        self, residency: Tier, without: Collection[str], warmth: Mapping[str, int], *, lost: bool
    ) -> str | None:
        """The engine with fewest copies that has room and is none of `without`; then the warmest, then the first.

        `warmth` says how warm engines hold the adapter already. `lost` asks among the lost engines instead.
        """
        heap = self._heaps[lost, residency is Tier.DEVICE]
        found, aside = None, []
        while heap and found is None:
            copies, ordinal = heapq.heappop(heap)
            name = self._names[ordinal]
            if copies != self._copies[name] or not self.fits(name, residency):
                continue  # stale, or full: a change puts it back
            aside.append((copies, ordinal))
            found = None if name in without else name
        for entry in aside:
            heapq.heappush(heap, entry)
        if found is None:
            return None
        fewest = self._copies[found]
        warm = [
            (-warmth[name], self._ordinals[name])
            for name in warmth
            if name in self._ordinals and (name in self._lost) is lost and name not in without
            if self._copies[name] == fewest and self.fits(name, residency)
        ]
        return self._names[min(warm)[1]] if warm else found

    def _change(self, engine: str, residency: Tier, by: int) -> None:
        self._copies[engine] += by
        if residency is Tier.DEVICE:
            self._taken[engine] += by
        entry = (self._copies[engine], self._ordinals[engine])
        lost = engine in self._lost
        heapq.heappush(self._heaps[lost, False], entry)
        if self._taken[engine] < self._slots:
            heapq.heappush(self._heaps[lost, True], entry)
