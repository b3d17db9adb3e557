"""Decides which waves may begin to train in the room that serving leaves, and how much more room to make."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from mint_operator.planning import conditions
from mint_operator.planning.capacity import over_quota
from mint_operator.planning.engines import engine_name
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.planning.turns import by_namespace, quota
from mint_operator.training.place import Slots, fill
from mint_operator.training.share import Share, slots_of
from mint_operator.training.standing import WaveStanding


class TrainingCapacity:
    """A base's slots while training waves are admitted, one after another. Mutable, and local to one plan.

    `held` are the slots of each namespace's policies; `shares` is what waves serve.
    """

    def __init__(self, base: ObservedBase, shares: Iterable[Share], slots: Slots, held: Mapping[str, int]) -> None:
        replicas = base.spec.engine.replicas
        self.slots = slots
        self.engines = 0  # that the base needs for waves that wait for memory; 0: more engines would not help
        self._names = [engine_name(base.meta.name, at) for at in range(max(replicas.min, replicas.max))]
        self._each = base.spec.adapters.device_slots
        self.total = len(self._names) * self._each
        self.held = Counter(held)
        self.demand = self.held.total()
        self.asked: set[str] = set()  # gangs to which what is served on ready engines gives way
        self._shares = [each for each in shares if each.wave.spec.serve.residency == "Device"]
        self._tenants = by_namespace(base.spec.tenants)
        # Each is computed once, over all adapters that are served in slots.
        self._serving, self._kept, self._served = dict[int | None, int](), dict[int, int](), dict[str, int]()

    def serving(self, priority: int | None) -> int:
        """Return the slots that serving waves want: of all, or of those that do not give way to this priority."""
        if priority not in self._serving:
            found = (each for each in self._shares if each.counts)
            self._serving[priority] = slots_of(
                each for each in found if priority is None or not each.yields(priority)
            )
        return self._serving[priority]

    def held_back(self, wave: ObservedWave) -> bool:
        """Whether a serving wave that comes first waits for slots; free slots are for that one."""
        return any(each.waits and turn(each.wave) < turn(wave) for each in self._shares)

    def over_quota(self, wave: ObservedWave, more: int) -> Refusal | None:
        """Return why a wave's namespace may not have this many more slots; None if it may."""
        namespace = wave.meta.namespace
        most = quota(self._tenants, namespace)
        return over_quota(namespace, most, self._taken(namespace), more) if most else None

    def left(self, wave: ObservedWave) -> int:
        """Return how many more slots a wave may have: within the quota, and beside what does not give way to it.

        That counts even if it has yet to be placed, so that training does not displace it. So do slots that are being
        freed for a gang.
        """
        namespace, priority = wave.meta.namespace, wave.spec.priority
        if priority not in self._kept:
            self._kept[priority] = slots_of(each for each in self._shares if each.holds and not each.yields(priority))
        most, rest = quota(self._tenants, namespace), self.total - self.demand - self._kept[priority]
        return max(0, min(rest, most - self._taken(namespace)) if most else rest)

    def _taken(self, namespace: str) -> int:
        """Return the slots of a namespace's policies and of what its waves serve."""
        if namespace not in self._served:
            own = (each for each in self._shares if each.wave.meta.namespace == namespace)
            self._served[namespace] = slots_of(each for each in own if each.holds)
        return self.held[namespace] + self._served[namespace]

    def lacks_memory(self, standing: WaveStanding, pins: Mapping[str, str], gang: bool, most: int) -> bool:
        """Whether more of a wave's policies could begin if only slots counted."""
        return len(fill(standing, pins, self.slots.copy(), whole=gang, most=most, blind=True)) > len(pins)

    def fits_alone(self, standing: WaveStanding, kept: Mapping[str, str]) -> bool:
        """Whether there is memory for all of a wave's policies together once no other wave's policies take any."""
        alone = self.slots.without_waves({*self._names, *kept.values()})
        for policy in standing.policies:
            if policy.name in kept:
                alone.take(kept[policy.name], policy.settings)
        return len(fill(standing, kept, alone, whole=True)) == len(standing.wants_slot)

    def ask_for_memory(self, standing: WaveStanding, pins: Mapping[str, str], gang: bool, most: int) -> None:
        """Ask for the fewest additional engines that give memory to as many of a wave's policies as possible."""
        new = [name for name in self._names if name not in self.slots.free]

        def placed(more: int) -> int:
            return len(fill(standing, pins, self.slots.enlarged(new[:more]), whole=gang, most=most))

        best = placed(len(new))
        if best > len(pins):  # existing engines that are not ready are waited for
            more = bisect_left(range(len(new)), best, key=placed)
            self.engines = max(self.engines, len(self.slots.free) + more)

    @property
    def usable(self) -> int:
        """The slots of all engines that are usable now, whoever has them."""
        return len(self.slots.usable & set(self._names)) * self._each

    def take(self, wave: ObservedWave, count: int) -> None:
        """Count slots that a wave's policies have taken."""
        self.held[wave.meta.namespace] += count
        self.demand += count


def admit(
    wave: ObservedWave, standing: WaveStanding, kept: Mapping[str, str], capacity: TrainingCapacity
) -> WaveStanding:
    """Return the standing with a place for every policy that trains, or with the reason why the wave waits."""
    missing = len(standing.wants_slot) - len(kept)
    if not missing:
        return msgspec.structs.replace(standing, pins=kept)
    gang = standing.train.admission == "Gang"
    over = capacity.over_quota(wave, missing if gang else 1)
    if over is not None:
        return msgspec.structs.replace(standing, pins=kept, waiting=None if kept else over)
    free = 0 if capacity.held_back(wave) and not kept else capacity.slots.room()
    may = capacity.left(wave)
    pins = fill(standing, kept, capacity.slots, whole=gang, most=may) if free else dict(kept)
    left = may - (len(pins) - len(kept))
    short = bool(free) and len(pins) < len(standing.wants_slot) and capacity.lacks_memory(standing, pins, gang, left)
    if short and gang and not capacity.fits_alone(standing, kept):
        # Place them regardless of memory, in which they then take turns; together they would wait forever.
        pins, short = fill(standing, kept, capacity.slots, whole=True, most=may, blind=True), False
    if short:
        capacity.ask_for_memory(standing, pins, gang, left)
    capacity.take(wave, len(pins) - len(kept))
    more = len(standing.wants_slot) - len(pins)
    if gang and more > capacity.slots.room() and _ask(wave, more, capacity.usable, capacity, gang=True):
        capacity.asked.add(wave.meta.key)
    if pins:
        return msgspec.structs.replace(standing, pins=pins)
    message = (
        f"needs {missing if gang else 1} device slots for its policies; the ready engines have "
        f"{capacity.slots.room()} of the base's {capacity.total} free, which waves ahead of it may be waiting for"
    )
    if short:
        waits = [policy.settings for policy in standing.policies if policy.name in standing.wants_slot]
        message = capacity.slots.memory.shortage(waits if gang else waits[:1], capacity.slots.with_room)
    waiting = Refusal(conditions.WAITING_FOR_CAPACITY, message, terminal=False, mentions=NO_NAMES)
    return msgspec.structs.replace(standing, waiting=waiting)


def ask_for_more(wave: ObservedWave, standing: WaveStanding, capacity: TrainingCapacity) -> None:
    """Add what a wave still needs to the demand, once all waves have been admitted.

    Engines that are not there may never come, so nothing that is free now is kept for a wave that needs them.
    """
    missing = len(standing.wants_slot) - len(standing.pins)
    if missing and wave.meta.key not in capacity.asked:
        _ask(wave, missing, capacity.total, capacity, gang=standing.train.admission == "Gang")


def _ask(wave: ObservedWave, missing: int, slots: int, capacity: TrainingCapacity, *, gang: bool) -> bool:
    """Add what is missing to the demand if so many `slots` have room for it once waves of lower priority give way.

    A gang asks for all or nothing: it could not begin with less, and nobody else could use that. Returns whether
    anything was added.
    """
    spare = slots - capacity.demand - capacity.serving(wave.spec.priority if gang else None)
    more = min(missing, spare, capacity.left(wave))
    if more <= 0 or (gang and more < missing):
        return False
    capacity.demand += more
    return True


def turn(wave: ObservedWave) -> tuple[int, str, str]:
    """Return the key that sorts waves by priority, age and name."""
    return -wave.spec.priority, wave.meta.created, wave.meta.key
