"""How much a base can hold, in engines and device slots, and what does not fit."""

import msgspec

from mint_operator import conditions
from mint_operator.adapters import Refusal
from mint_operator.snapshot import ObservedBase


class Bounds(msgspec.Struct, frozen=True):
    """The engines that a base may have, and the slots of each."""

    low: int
    high: int
    slots: int

    @property
    def total(self) -> int:
        """Slots of as many engines as there may be."""
        return self.high * self.slots

    def engines(self, slots: int, replicas: int) -> int:
        """Engines that `slots` device copies need, none of which shares its engine with its like.

        Copies of one adapter never exceed the engines, so by wrapping them around they always fit into this many.
        """
        needed = max(-(-slots // self.slots), replicas, self.low)
        return min(needed, self.high)


def bounds(base: ObservedBase) -> Bounds:
    """The bounds of a base."""
    replicas = base.spec.engine.replicas
    return Bounds(low=replicas.min, high=max(replicas.min, replicas.max), slots=base.spec.adapters.device_slots)


def never(limits: Bounds, slots: int, replicas: int, adapters: int) -> Refusal | None:
    """Why a wave cannot fit even if it were alone; None if it can."""
    if replicas > limits.high:
        return Refusal(
            "CapacityExceeded",
            f"wants each adapter on {replicas} engines, but the base may have {limits.high}; "
            f"lower spec.serve.replicas to {limits.high}, or raise spec.engine.replicas.max of the BaseModel",
        )
    if slots > limits.total:
        return Refusal(
            "CapacityExceeded",
            f"wants {adapters} adapters x {replicas} replicas = {slots} device slots, but {limits.high} engines x "
            f"{limits.slots} slots = {limits.total}; ask for less, for residency Host or Disk, or raise "
            "spec.engine.replicas.max or spec.adapters.deviceSlots of the BaseModel",
        )
    return None


def now(limits: Bounds, taken: int, more: int) -> Refusal | None:
    """Why a wave has to wait while others hold `taken` slots; None if its `more` slots fit too."""
    if taken + more <= limits.total:
        return None
    return Refusal(
        conditions.WAITING_FOR_CAPACITY,
        f"needs {more} more device slots; waves before it hold {taken} of {limits.total} "
        f"({limits.high} engines x {limits.slots}), {limits.total - taken} are free",
        terminal=False,
    )
