"""On which engine each policy trains: where it is, as long as that engine lives; a wave's policies together.

Policies of one wave share rollout batches and updates, so one engine that can take them all is best; else as few as
can. Only free slots are given: what is served stays where it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from mint_operator.planning.engines import Engine
from mint_operator.training.stand import WaveStand


class Slots:
    """Free slots of each engine while policies are placed. Mutable, and local to one plan."""

    def __init__(self, engines: Sequence[Engine], each: int, served: Mapping[str, int]) -> None:
        self._usable = {engine.name for engine in engines if engine.alive and not engine.lost}
        self._kept = {engine.name for engine in engines if not engine.lost}
        self.free = {engine.name: each - served.get(engine.name, 0) for engine in engines}

    def keeps(self, engine: str) -> bool:
        """Whether a policy that trains there stays; an engine that is merely away comes back."""
        return engine in self._kept

    def take(self, engine: str, count: int = 1) -> None:
        """Give slots of an engine away; it may go below none where limits were lowered under what runs."""
        self.free[engine] -= count

    def room(self) -> int:
        """Free slots of all live engines."""
        return sum(max(0, self.free[name]) for name in self._usable)

    def open(self, engine: str) -> bool:
        """Whether the engine lives and has a free slot."""
        return engine in self._usable and self.free[engine] > 0

    def best(self, near: Mapping[str, int]) -> str | None:
        """The live engine with a free slot that trains most of the wave already, then the one with most room."""
        able = [name for name in self._usable if self.open(name)]
        return min(able, key=lambda name: (-near.get(name, 0), -self.free[name], name), default=None)


def keep(stand: WaveStand, slots: Slots) -> dict[str, str]:
    """The policies that stay where they train."""
    pins, wanting = {}, frozenset(stand.wants_slot)
    for policy in stand.policies:
        stays = policy.engine in slots.free if stand.kept else slots.keeps(policy.engine)
        if policy.name in wanting and policy.holds and stays:
            slots.take(policy.engine)
            pins[policy.name] = policy.engine
    return pins


def fill(
    stand: WaveStand, pins: Mapping[str, str], slots: Slots, *, whole: bool = False, most: int | None = None
) -> dict[str, str]:
    """`pins` with as many of the others as have a free slot somewhere, in order; if `whole`, with all or none.

    `most`: no more than so many others.
    """
    found = dict(pins)
    most = len(stand.wants_slot) if most is None else most
    if whole and min(slots.room(), most) < len(stand.wants_slot) - len(found):
        return found
    near = Counter(found.values())
    home = {policy.name: policy.engine for policy in stand.policies}
    for name in stand.wants_slot:
        if name in found:
            continue
        if len(found) - len(pins) >= most:
            break
        engine: str | None = home[name] if slots.open(home[name]) else slots.best(near)
        if engine is None:
            break
        slots.take(engine)
        near[engine] += 1
        found[name] = engine
    return found
