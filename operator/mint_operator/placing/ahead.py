"""Brings adapters that waiting waves will need to engines' disks ahead of time.

An engine loads these last, into unused room on its disk: they take no slot and no memory, never displace an adapter
that is wanted now, and do not count in admission. Once such a wave is admitted, its adapters are where they are
likely to be placed, since an engine that holds an adapter is preferred.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from mint_contracts.records import Assignment, Tier
from mint_operator.placing.placement import Placed
from mint_operator.planning.adapters import Want
from mint_operator.planning.engines import Engine
from mint_operator.planning.sizes import Size

MOST = 1024  # adapters, over all engines of a base
MOST_AN_ENGINE = 32
SHARE = 4  # at most 1/SHARE of an engine's disk cache
LAST = -(1 << 30)  # below every priority that a wave may have
TRIES = 8  # engines that are tried per adapter

Ahead = Mapping[str, Mapping[str, Assignment]]  # engine -> adapter -> what to bring there

_UNREAD = Size(rank=0)


def ahead(queue: Sequence[Sequence[Want]], placed: Placed, before: Ahead) -> Ahead:
    """Return what to bring where, for waves in the order in which they wait. What was brought before stays there."""
    shelves = _Shelves(placed)
    homes = {adapter: engine for engine, of in before.items() for adapter in of}
    found: dict[str, dict[str, Assignment]] = {}
    seen: set[str] = set()
    for want in (want for wants in queue for want in wants):
        if len(seen) == MOST:
            break
        if want.adapter in placed.records or want.adapter in seen:
            continue
        seen.add(want.adapter)
        engine = shelves.put(want, homes.get(want.adapter, ""))
        if engine:
            found.setdefault(engine, {})[want.adapter] = Assignment(
                want.adapter, want.source, Tier.DISK, want.waves, priority=LAST, ahead=True
            )
    return found


def merged(assigned: Mapping[str, Mapping[str, Assignment]], more: Ahead) -> Mapping[str, Mapping[str, Assignment]]:
    """Return both combined; where both name an adapter on an engine, `assigned` wins."""
    if not more:
        return assigned
    return {**assigned, **{engine: {**of, **assigned.get(engine, {})} for engine, of in more.items()}}


def brought(assigned: Mapping[str, Mapping[str, Assignment]]) -> Ahead:
    """Return what the map says was to be brought ahead, for an operator that has just started."""
    found = {engine: {name: each for name, each in of.items() if each.ahead} for engine, of in assigned.items()}
    return {engine: of for engine, of in found.items() if of}


class _Shelves:
    """Free room on engines' disks, the least loaded engine first; local to one plan."""

    def __init__(self, placed: Placed) -> None:
        task = placed.task
        self._placed, self._sizes, self._disk = placed, task.sizes, task.limits.disk_bytes
        self._assumed = self._disk // (SHARE * MOST_AN_ENGINE)  # bytes assumed for an adapter of unknown size
        able = [engine for engine in task.engines if engine.alive and not engine.lost and not engine.leaving]
        self._able = {engine.name for engine in able}
        self._turns = deque(engine.name for engine in sorted(able, key=self._load))
        self._count: dict[str, int] = {}
        self._free: dict[str, int] = {}

    def put(self, want: Want, home: str) -> str:
        """Return the engine for a want: its `home` so far, else the next engine with room; "" if there is none."""
        if home and self._takes(home, want):
            return home
        if want.pins:
            return next((name for name in want.pins if self._takes(name, want)), "")
        for _ in range(min(TRIES, len(self._turns))):
            name = self._turns.popleft()
            if self._count.get(name, 0) < MOST_AN_ENGINE:
                self._turns.append(name)
                if self._takes(name, want):
                    return name
        return ""

    def _takes(self, name: str, want: Want) -> bool:
        """Reserve room for a want on an engine; returns False if it may not go there or does not fit."""
        if name not in self._able or (want.pins and name not in want.pins):
            return False
        size = self._sizes.get(want.adapter, _UNREAD).bytes or self._assumed
        count, free = self._count.get(name, 0), self._free.get(name)
        if free is None:
            free = self._room(name)
        self._free[name] = free
        if count >= MOST_AN_ENGINE or size > free:
            return False
        self._count[name], self._free[name] = count + 1, free - size
        return True

    def _room(self, name: str) -> int:
        """Return the bytes free for this; all that an engine is given, in any tier, is on its disk, too."""
        held = sum(self._sizes.get(adapter, _UNREAD).bytes for adapter in self._placed.given.get(name, ()))
        return min(self._disk // SHARE, self._disk - held)

    def _load(self, engine: Engine) -> tuple[int, int]:
        return self._placed.loads[engine.name].copies, engine.ordinal
