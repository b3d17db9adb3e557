"""Which waves may begin to train in the room that serving leaves, and how much more room is worth making."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from mint_operator.planning import conditions
from mint_operator.planning.capacity import over_quota
from mint_operator.planning.conditions import ADMITTED, status_of
from mint_operator.planning.engines import engine_name
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.planning.turns import by_namespace, quota
from mint_operator.training.place import Slots, fill
from mint_operator.training.stand import WaveStand


class TrainingCapacity:
    """Slots of a base while waves that train are let in, one after another. Mutable, and local to one plan.

    `held` are the slots that policies of each namespace have, `served` those of what they have published.
    """

    def __init__(
        self,
        base: ObservedBase,
        serving: Sequence[ObservedWave],
        slots: Slots,
        held: Mapping[str, int],
        served: Mapping[str, int],
    ) -> None:
        replicas = base.spec.engine.replicas
        self.slots = slots
        self.engines = 0  # of the base, that give memory to those that wait for it; 0: engines do not help them
        self._names = [engine_name(base.meta.name, at) for at in range(max(replicas.min, replicas.max))]
        self.total = len(self._names) * base.spec.adapters.device_slots
        self.held = Counter(held)
        self.demand = self.held.total()
        self._serving = serving
        self._tenants = by_namespace(base.spec.tenants)
        self._served = Counter(served)
        for wave in serving:
            admitted = bool(wave.defect) or status_of(wave.status.conditions, ADMITTED) == "True"
            if wave.spec.serve.residency == "Device" and admitted:
                self._served[wave.meta.namespace] += _wanted(wave)

    def serving(self, least_priority: int | None) -> int:
        """Slots that serving waves want: all of them, or those that do not give way to this priority."""
        return sum(
            _wanted(wave)
            for wave in self._serving
            if wave.spec.serve.residency == "Device"
            if least_priority is None or wave.defect or wave.spec.priority >= least_priority
        )

    def held_back(self, wave: ObservedWave) -> bool:
        """Whether a serving wave that comes first waits for slots: what is free is its."""
        return any(_waits(each) and turn(each) < turn(wave) for each in self._serving)

    def over_quota(self, wave: ObservedWave, more: int) -> Refusal | None:
        """Why a wave's namespace may not have so many slots more."""
        namespace = wave.meta.namespace
        taken = self.held[namespace] + self._served[namespace]
        return over_quota(namespace, quota(self._tenants, namespace), taken, more)

    def left(self, wave: ObservedWave) -> int:
        """Slots that a wave's namespace may still have."""
        namespace = wave.meta.namespace
        most = quota(self._tenants, namespace) or self.total
        return max(0, most - self.held[namespace] - self._served[namespace])

    def lacks_memory(self, stand: WaveStand, pins: Mapping[str, str], gang: bool, most: int) -> bool:
        """Whether by slots alone more of a wave's policies could begin."""
        return len(fill(stand, pins, self.slots.copy(), whole=gang, most=most, blind=True)) > len(pins)

    def fits_alone(self, stand: WaveStand, kept: Mapping[str, str]) -> bool:
        """Whether a wave's policies have memory together once no other wave's have any."""
        alone = self.slots.without_waves({*self._names, *kept.values()})
        for policy in stand.policies:
            if policy.name in kept:
                alone.take(kept[policy.name], policy.settings)
        return len(fill(stand, kept, alone, whole=True)) == len(stand.wants_slot)

    def ask_for_memory(self, stand: WaveStand, pins: Mapping[str, str], gang: bool, most: int) -> None:
        """Count in the fewest engines more by which as many of a wave's policies get memory as can get it."""
        new = [name for name in self._names if name not in self.slots.free]

        def placed(more: int) -> int:
            return len(fill(stand, pins, self.slots.enlarged(new[:more]), whole=gang, most=most))

        best = placed(len(new))
        if best > len(pins):  # engines that there are and that are not ready are waited for
            more = bisect_left(range(len(new)), best, key=placed)
            self.engines = max(self.engines, len(self.slots.free) + more)

    def take(self, wave: ObservedWave, count: int) -> None:
        """Policies of a wave have got slots."""
        self.held[wave.meta.namespace] += count
        self.demand += count


def begun(wave: ObservedWave, stand: WaveStand, kept: Mapping[str, str], capacity: TrainingCapacity) -> WaveStand:
    """The stand with a place for every policy that trains, or with the reason why the wave waits."""
    missing = len(stand.wants_slot) - len(kept)
    if not missing:
        return msgspec.structs.replace(stand, pins=kept)
    gang = stand.train.admission == "Gang"
    over = capacity.over_quota(wave, missing if gang else 1)
    if over is not None:
        return msgspec.structs.replace(stand, pins=kept, waiting=None if kept else over)
    free = 0 if capacity.held_back(wave) and not kept else capacity.slots.room()
    may = capacity.left(wave)
    pins = fill(stand, kept, capacity.slots, whole=gang, most=may) if free else dict(kept)
    left = may - (len(pins) - len(kept))
    short = bool(free) and len(pins) < len(stand.wants_slot) and capacity.lacks_memory(stand, pins, gang, left)
    if short and gang and not capacity.fits_alone(stand, kept):
        # Its policies take turns in memory, as their engine gives it: all at once they would wait for good.
        pins, short = fill(stand, kept, capacity.slots, whole=True, most=may, blind=True), False
    if short:
        capacity.ask_for_memory(stand, pins, gang, left)
    capacity.take(wave, len(pins) - len(kept))
    _ask_for_more(wave, stand, min(len(stand.wants_slot) - len(pins), capacity.left(wave)), capacity)
    if pins:
        return msgspec.structs.replace(stand, pins=pins)
    message = (
        f"needs {missing if gang else 1} device slots for its policies; the ready engines have "
        f"{capacity.slots.room()} of the base's {capacity.total} free, which waves ahead of it may be waiting for"
    )
    if short:
        waits = [policy.settings for policy in stand.policies if policy.name in stand.wants_slot]
        message = capacity.slots.memory.shortage(waits if gang else waits[:1], capacity.slots.usable)
    waiting = Refusal(conditions.WAITING_FOR_CAPACITY, message, terminal=False, mentions=NO_NAMES)
    return msgspec.structs.replace(stand, waiting=waiting)


def _ask_for_more(wave: ObservedWave, stand: WaveStand, missing: int, capacity: TrainingCapacity) -> None:
    """Count what is missing as wanted, where engines can be added for it or waves of lower priority can give way."""
    gang = stand.train.admission == "Gang"
    spare = capacity.total - capacity.demand - capacity.serving(wave.spec.priority if gang else None)
    if missing <= spare or not gang:
        capacity.demand += max(0, min(missing, spare))


def turn(wave: ObservedWave) -> tuple[int, str, str]:
    """Waves come by priority, age and name."""
    return -wave.spec.priority, wave.meta.created, wave.meta.key


def _wanted(wave: ObservedWave) -> int:
    """Copies that a wave wants, or will once somebody has looked at it; one that is kept wants what it has."""
    adapters = wave.spec.adapters
    named = len(wave.listed or ()) if wave.defect else len(adapters.names) + len(adapters.sources)
    return wave.status.counts.wanted or named * wave.spec.serve.replicas


def _waits(wave: ObservedWave) -> bool:
    """Whether a wave waits for slots; what is kept in memory or on disk takes none."""
    if wave.spec.serve.residency != "Device" or wave.defect:  # who is kept as it is has what it gets
        return False
    admitted = next((each for each in wave.status.conditions if each.type == conditions.ADMITTED), None)
    if admitted is None:  # nobody has looked at it yet
        return True
    return admitted.status == "False" and admitted.reason == conditions.WAITING_FOR_CAPACITY
