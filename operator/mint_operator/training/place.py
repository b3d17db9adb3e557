"""Chooses the engine on which each policy trains: where it is, while that engine lives; a wave's policies together.

Policies of one wave share rollout batches and updates, so one engine that can take them all is best, else as few as
possible. Policies get only free slots and, if engines report it, free memory: what is served stays where it is. The
policies of an engine that has restarted and takes long to load its base move to others that have room for them.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from mint_contracts.training import Policy
from mint_operator.planning.engines import Engine
from mint_operator.training.gang import packed
from mint_operator.training.memory import Memory, size_of
from mint_operator.training.standing import PolicyStanding, WaveStanding


class Slots:
    """Free slots and memory of each engine while policies are placed. Mutable, and local to one plan."""

    def __init__(
        self,
        engines: Sequence[Engine],
        each: int,
        served: Mapping[str, int],
        memory: Memory,
        outdated: Collection[str] = (),
    ) -> None:
        """Each engine has `each` slots, minus those `served`; `outdated` engines are to restart."""
        self._usable = {engine.name for engine in engines if engine.alive and not engine.lost}
        self._kept = {engine.name for engine in engines if not engine.lost}
        self._late = {engine.name for engine in engines if engine.alive and engine.lost}
        self._rank_keys = {engine.name: (not engine.ready, engine.name in outdated) for engine in engines}
        self._starts = {engine.name: engine.record.incarnation for engine in engines if engine.record is not None}
        self._each = each
        self.free = {engine.name: each - served.get(engine.name, 0) for engine in engines}
        self.memory = memory

    def copy(self) -> "Slots":
        """Return an independent copy: taking from it leaves this one unchanged."""
        found = Slots((), self._each, {}, self.memory.copy())
        found._usable, found._kept, found._late = set(self._usable), set(self._kept), set(self._late)
        found._rank_keys, found.free = self._rank_keys, dict(self.free)
        return found

    def without_waves(self, engines: Collection[str]) -> "Slots":
        """Return these engines with all slots free, and with memory without any wave's policies."""
        found = Slots((), self._each, {}, self.memory.without_waves())
        found.memory.enlarge(engines)
        found._usable = set(engines)
        found.free = dict.fromkeys(engines, self._each)
        return found

    def enlarged(self, engines: Iterable[str]) -> "Slots":
        """Return a copy in which all engines are usable, even if starting, away or late, and `engines` are added."""
        found, more = self.copy(), set(engines)
        found.free |= dict.fromkeys(more, self._each)
        found._usable = set(found.free)
        found.memory.enlarge(more)
        return found

    @property
    def usable(self) -> frozenset[str]:
        """The engines on which slots may be taken."""
        return frozenset(self._usable)

    @property
    def with_room(self) -> frozenset[str]:
        """The usable engines that have a free slot."""
        return frozenset(name for name in self._usable if self.free[name] > 0)

    def stays(self, policy: PolicyStanding, others: int) -> bool:
        """Whether a policy stays on its engine beside `others`; an engine that is only restarting is expected back.

        One that has restarted since, and has fewer slots now, could not train them all at once.
        """
        engine, lease = policy.engine, policy.assignment
        trains = lease is not None and self._starts.get(engine, lease.incarnation) == lease.incarnation
        return engine in self._kept and (trains or others < self._each)

    def is_late(self, engine: str) -> bool:
        """Whether the engine is alive again, but has been unready for so long that others are better."""
        return engine in self._late

    def rank_key(self, engine: str) -> tuple[bool, bool]:
        """Return a sort key by which ready engines come first, then those that are not to restart soon."""
        return self._rank_keys.get(engine, (True, False))

    def take(self, engine: str, policy: Policy) -> None:
        """Reserve a policy's slot and memory on an engine. Counts may become negative after limits were lowered."""
        self.free[engine] -= 1
        self.memory.take(engine, policy)

    def room(self) -> int:
        """Return the number of free slots on all usable engines."""
        return sum(max(0, self.free[name]) for name in self._usable)

    def open(self, engine: str, policy: Policy, *, blind: bool = False) -> bool:
        """Whether an engine is usable and has a free slot and memory for a policy; `blind` ignores memory."""
        able = engine in self._usable and self.free[engine] > 0
        return able and (blind or self.memory.fits(engine, policy))

    def best(self, near: Mapping[str, int], policy: Policy, *, blind: bool) -> str | None:
        """Return the usable engine with room for a policy that comes first by `rank_key`; None if there is none.

        Among equals, the one that already trains most of the wave is best, then the one with most free slots.
        """
        able = [name for name in self._usable if self.open(name, policy, blind=blind)]
        return min(
            able, key=lambda name: (self.rank_key(name), -near.get(name, 0), -self.free[name], name), default=None
        )


def keep(standing: WaveStanding, slots: Slots, trains: Counter[str]) -> dict[str, str]:
    """Return the policies that stay where they train, by name; reserve their slots, and count them by engine."""
    pins, wanting = {}, frozenset(standing.wants_slot)
    for policy in standing.policies:
        if policy.name not in wanting or not policy.holds:
            continue
        if policy.engine in slots.free if standing.kept else slots.stays(policy, trains[policy.engine]):
            slots.take(policy.engine, policy.settings)
            trains[policy.engine] += 1
            pins[policy.name] = policy.engine
    return pins


def late(standing: WaveStanding, kept: Mapping[str, str], slots: Slots) -> list[PolicyStanding]:
    """Return the policies, other than those `kept`, whose engines are late."""
    wanting = frozenset(standing.wants_slot) - kept.keys()
    return [
        policy
        for policy in standing.policies
        if policy.name in wanting and policy.holds and slots.is_late(policy.engine)
    ]


def moved(standing: WaveStanding, kept: Mapping[str, str], slots: Slots, leave: int) -> dict[str, str]:
    """Return `kept` plus the policies of late engines: on others that have room, else waiting where they are.

    They `leave` this number of slots to served copies that come before them.
    """
    found, near = dict(kept), Counter(kept.values())
    for policy in late(standing, kept, slots):
        target = slots.best(near, policy.settings, blind=False) if slots.room() > leave else None
        engine = target or policy.engine
        slots.take(engine, policy.settings)
        near[engine] += 1
        found[policy.name] = engine
    return found


def fill(
    standing: WaveStanding,
    pins: Mapping[str, str],
    slots: Slots,
    *,
    whole: bool = False,
    most: int | None = None,
    blind: bool = False,
) -> dict[str, str]:
    """Return `pins` plus as many of the other policies as have room, in order; if `whole`, plus all or none.

    `most` limits the number of others; `blind` ignores the engines' memory.
    """
    most = len(standing.wants_slot) if most is None else most
    missing = len(standing.wants_slot) - len(pins)
    if whole:
        if min(slots.room(), most) < missing:
            return dict(pins)
        if len(_filled(standing, pins, slots.copy(), missing, blind)) < len(standing.wants_slot):
            return dict(pins) if blind else _packed(standing, pins, slots)
    return _filled(standing, pins, slots, most, blind)


def _packed(standing: WaveStanding, pins: Mapping[str, str], slots: Slots) -> dict[str, str]:
    """Return `pins` plus all other policies, however they fit; `pins` alone if no placement is found."""
    wanting = frozenset(standing.wants_slot) - pins.keys()
    missing = [policy for policy in standing.policies if policy.name in wanting]
    free = {name: slots.free[name] for name in slots.usable}
    rank_keys = {name: slots.rank_key(name) for name in free}
    found = packed(missing, Counter(pins.values()), free, slots.memory, rank_keys) or {}
    for policy in missing:
        if policy.name in found:
            slots.take(found[policy.name], policy.settings)
    return {**pins, **found}


def _filled(standing: WaveStanding, pins: Mapping[str, str], slots: Slots, most: int, blind: bool) -> dict[str, str]:
    found, near, too_large = dict(pins), Counter(pins.values()), set[Hashable]()
    by_name = {policy.name: policy for policy in standing.policies}
    for name in standing.wants_slot:
        policy = by_name[name]
        if name in found or size_of(policy.settings) in too_large:
            continue
        if len(found) - len(pins) >= most or not slots.room():
            break
        home = policy.engine if slots.open(policy.engine, policy.settings, blind=blind) else None
        engine = home or slots.best(near, policy.settings, blind=blind)
        if engine is None:  # a smaller policy may still fit
            too_large.add(size_of(policy.settings))
            continue
        slots.take(engine, policy.settings)
        near[engine] += 1
        found[name] = engine
    return found
