"""The engines of one base while a placement is computed: what each is given, and which is least loaded.

A heap per tier makes the choice of the least loaded engine logarithmic in the number of engines. Every engine in it
has an entry of at most its load: when a load grows, the entry becomes stale and is corrected once it surfaces; when a
load shrinks, another entry is added.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from heapq import heappop, heappush, heapreplace

import msgspec

from mint_contracts.records import Tier
from mint_operator.planning.engines import Engine
from mint_operator.planning.sizes import Size

_DEVICE, _HOST = Tier.DEVICE, Tier.HOST  # looking up an enum's member costs more than counting a copy


class Limits(msgspec.Struct, frozen=True):
    """What one engine of a base can hold: adapters in slots, and bytes in each colder tier."""

    slots: int
    host_bytes: int
    disk_bytes: int
    max_rank: int


class Load(msgspec.Struct, gc=False):
    """What one engine is given. `weight` is the sum of ranks, with which the cost of a decode step grows."""

    copies: int = 0
    slots: int = 0
    weight: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0

    def count(self, tier: Tier, size: Size, by: int) -> None:
        """Count `by` more copies (fewer if negative)."""
        self.copies += by
        self.weight += by * size.rank
        if tier is _DEVICE:
            self.slots += by
        elif tier is _HOST:
            self.host_bytes += by * size.bytes
        else:
            self.disk_bytes += by * size.bytes

    def room(self, tier: Tier, size: Size, limits: Limits) -> bool:
        """Whether one more copy fits."""
        if tier is _DEVICE:
            return self.slots < limits.slots
        if tier is _HOST:
            return self.host_bytes + size.bytes <= limits.host_bytes
        return self.disk_bytes + size.bytes <= limits.disk_bytes

    def key(self, tier: Tier) -> int:
        """Return the load by which engines are compared for a copy in this tier."""
        if tier is _DEVICE:
            return self.weight
        return self.host_bytes if tier is _HOST else self.disk_bytes

    def over(self, limits: Limits) -> bool:
        """Whether this is more than an engine can hold."""
        return self.slots > limits.slots or self.host_bytes > limits.host_bytes or self.disk_bytes > limits.disk_bytes


Copies = Mapping[str, Mapping[str, Tier]]  # engine -> adapter -> tier


class Board:
    """The board; mutable and local to one plan. It starts from `loads` and `given` and never changes those."""

    def __init__(
        self,
        engines: Sequence[Engine],
        limits: Limits,
        sizes: Mapping[str, Size],
        loads: Mapping[str, Load] | None = None,
        given: Copies | None = None,
        reserved: Mapping[str, int] | None = None,
    ) -> None:
        """`reserved` slots belong to policies that train on an engine; so does the training memory it reports."""
        self.limits = limits
        self._sizes = sizes
        self._unknown = Size(rank=limits.max_rank)
        self._ordinals = {engine.name: engine.ordinal for engine in engines}
        self._names = {engine.ordinal: engine.name for engine in engines}
        self._lost = {engine.name for engine in engines if engine.lost}
        self._leaving = {engine.name for engine in engines if engine.leaving}
        self.failing = frozenset(engine.name for engine in engines if engine.failing)
        self.unready = frozenset(engine.name for engine in engines if not engine.ready and not engine.lost)
        self.count = len(engines)
        self.any_lost, self.any_leaving = bool(self._lost), bool(self._leaving)
        taken = reserved or {}
        self.loads = (
            dict(loads)
            if loads is not None
            else {
                engine.name: Load(
                    slots=taken.get(engine.name, 0), host_bytes=min(engine.training_bytes, limits.host_bytes)
                )
                for engine in engines
            }
        )
        self.given: dict[str, Mapping[str, Tier]] = {} if given is None else dict(given)
        self._own: dict[str, dict[str, Tier]] = {}  # the entries of `given` that this board has changed
        self._heaps: dict[tuple[bool, Tier], list[tuple[int, int, int]]] = {}

    def __contains__(self, engine: str) -> bool:
        return engine in self._ordinals

    def size(self, adapter: str) -> Size:
        """Return the adapter's size; until an engine has read it, the largest rank and no bytes."""
        return self._sizes.get(adapter, self._unknown)

    def lost(self, engine: str) -> bool:
        """Whether the engine has been away, or not ready, for too long."""
        return engine in self._lost

    def leaving(self, engine: str) -> bool:
        """Whether the engine is about to be removed."""
        return engine in self._leaving

    def able(self, engine: str, *, lost: bool = False) -> bool:
        """Whether an engine may be given anything new: it exists, is not leaving, and is lost only if `lost`."""
        return engine in self._ordinals and engine not in self._leaving and (engine in self._lost) is lost

    def ready(self, engine: str) -> bool:
        """Whether an engine may be given anything new, and can use it now."""
        return self.able(engine) and engine not in self.unready

    def ordinal(self, engine: str) -> int:
        """Return the engine's ordinal."""
        return self._ordinals[engine]

    def fits(self, engine: str, adapter: str, tier: Tier) -> bool:
        """Whether one more copy fits."""
        return self.loads[engine].room(tier, self.size(adapter), self.limits)

    def crowded(self) -> bool:
        """Whether any changed engine is given more than it can hold."""
        return any(self.loads[engine].over(self.limits) for engine in self._own)

    def put(self, engine: str, adapter: str, tier: Tier) -> None:
        """Give a copy to an engine."""
        own = self._own.get(engine)
        if own is None:
            own = self._changed(engine)
        own[adapter] = tier
        self.loads[engine].count(tier, self._sizes.get(adapter, self._unknown), 1)

    def take(self, engine: str, adapter: str, size: Size | None = None) -> None:
        """Take a copy from an engine; `size` is what it was counted with, if that differs from its size now."""
        tier = self._changed(engine).pop(adapter)
        self.loads[engine].count(tier, size or self.size(adapter), -1)
        if engine in self._leaving:
            return
        for (lost, of), heap in self._heaps.items():
            if lost is (engine in self._lost):
                heappush(heap, self._entry(engine, of))

    def least(
        self,
        adapter: str,
        tier: Tier,
        without: Collection[str],
        warmth: Mapping[str, int],
        *,
        lost: bool = False,
        pins: Collection[str] = (),
    ) -> str | None:
        """Return the least loaded engine that has room and is not in `without`; only of `pins`, if there are any.

        An engine that already holds the adapter (`warmth` says how warm) is preferred if its load is hardly higher:
        moving bytes costs more than a slightly uneven spread. `lost` chooses among the lost engines instead.
        """
        found = self._of_pins(adapter, tier, without, lost, pins) if pins else self._top(adapter, tier, without, lost)
        if found is None:
            return None
        if not warmth:
            return found
        most = self.loads[found].weight + self.size(adapter).rank + self.loads[found].weight // 8
        warm = [
            (-warmth[name], self.loads[name].weight, self._ordinals[name])
            for name in warmth
            if self.able(name, lost=lost) and name not in without
            if not pins or name in pins
            if self.loads[name].weight <= most and self.fits(name, adapter, tier)
        ]
        return self._names[min(warm)[2]] if warm else found

    def _of_pins(
        self, adapter: str, tier: Tier, without: Collection[str], lost: bool, pins: Collection[str]
    ) -> str | None:
        able = [
            self._entry(name, tier)
            for name in pins
            if self.able(name, lost=lost) and name not in without
            if self.fits(name, adapter, tier)
        ]
        return self._names[min(able)[2]] if able else None

    def _top(self, adapter: str, tier: Tier, without: Collection[str], lost: bool) -> str | None:
        """Return the least loaded engine with room. Colder tiers sort by bytes: if the first lacks room, all do."""
        heap, found, aside = self._heap(lost, tier), None, []
        loads, names, size = self.loads, self._names, self._sizes.get(adapter, self._unknown)
        while heap and found is None:
            key, copies, ordinal = heap[0]
            name = names[ordinal]
            load = loads[name]
            if copies != load.copies or key != load.key(tier):
                heapreplace(heap, (load.key(tier), load.copies, ordinal))
            elif not load.room(tier, size, self.limits):
                if tier is not _DEVICE:
                    break
                heappop(heap)  # full; `take` puts it back
            elif name in without:
                aside.append(heappop(heap))
            else:
                found = name
        for entry in aside:
            heappush(heap, entry)
        return found

    def _heap(self, lost: bool, tier: Tier) -> list[tuple[int, int, int]]:
        """Return the heap of the lost or other engines for a tier, made on first use: most plans need few."""
        heap = self._heaps.get((lost, tier))
        if heap is None:
            barred, loads = self._leaving if lost else self._leaving | self._lost, self.loads
            names = self._lost - barred if lost else self._ordinals.keys() - barred
            heap = sorted([(loads[name].key(tier), loads[name].copies, self._ordinals[name]) for name in names])
            self._heaps[lost, tier] = heap
        return heap

    def _entry(self, engine: str, tier: Tier) -> tuple[int, int, int]:
        load = self.loads[engine]
        return load.key(tier), load.copies, self._ordinals[engine]

    def _changed(self, engine: str) -> dict[str, Tier]:
        own = self._own.get(engine)
        if own is None:
            own = self._own[engine] = dict(self.given.get(engine, {}))
            self.given[engine] = own
            self.loads[engine] = copy(self.loads[engine])
        return own
