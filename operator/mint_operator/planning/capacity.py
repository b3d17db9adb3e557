"""How much a base can hold, in engines, device slots and bytes, and which waves do not fit."""

from collections.abc import Mapping

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.records import Mentions, Tier
from mint_operator.planning import conditions
from mint_operator.planning.adapters import Want
from mint_operator.planning.asking import Ask
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import ObservedBase

_UNREAD = Size(rank=0)


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What copies take, over all engines. Adapters that no engine has read yet count no bytes."""

    slots: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0

    def plus(self, other: "Demand") -> "Demand":
        """Return the sum."""
        return Demand(
            self.slots + other.slots, self.host_bytes + other.host_bytes, self.disk_bytes + other.disk_bytes
        )

    def minus(self, other: "Demand") -> "Demand":
        """Return the difference."""
        return Demand(
            self.slots - other.slots, self.host_bytes - other.host_bytes, self.disk_bytes - other.disk_bytes
        )


class Bounds(msgspec.Struct, frozen=True):
    """The engines that a base may have, and what each can hold."""

    low: int
    high: int
    slots: int
    host_bytes: int
    disk_bytes: int

    @property
    def total(self) -> int:
        """The slots of the most engines that there may be."""
        return self.high * self.slots

    def engines(self, taken: Demand, replicas: int) -> int:
        """Return how many engines copies that take `taken` need at least, each copy of an adapter on its own engine.

        An adapter has at most as many copies as there are engines, so copies in slots, dealt out in a circle, always
        fit into this number; the others may need more, since an engine's last free bytes may be too few for a copy.
        """
        tiers = (
            (taken.slots, self.slots),
            (taken.host_bytes, self.host_bytes),
            (taken.disk_bytes, self.disk_bytes),
        )
        needed = max(replicas, self.low, *[-(-wanted // each) for wanted, each in tiers if each])
        return min(needed, self.high)


def bounds(base: ObservedBase) -> Bounds:
    """Return the bounds of a base."""
    replicas = base.spec.engine.replicas
    return Bounds(
        low=replicas.min,
        high=max(replicas.min, replicas.max),
        slots=base.spec.adapters.device_slots,
        host_bytes=base.host_bytes,
        disk_bytes=base.disk_bytes,
    )


def of(want: Want, sizes: Mapping[str, Size]) -> Demand:
    """Return what one want takes."""
    if want.residency is Tier.DEVICE:
        return Demand(slots=want.replicas)
    taken = want.replicas * sizes.get(want.adapter, _UNREAD).bytes
    return Demand(host_bytes=taken) if want.residency is Tier.HOST else Demand(disk_bytes=taken)


def demand(each: Ask, sizes: Mapping[str, Size]) -> Demand:
    """Return what one wave takes by itself."""
    if each.slots or not each.wants:  # a wave has one residency
        return Demand(slots=each.slots)
    taken = sum(want.replicas * sizes.get(want.adapter, _UNREAD).bytes for want in each.wants)
    return Demand(host_bytes=taken) if each.wants[0].residency is Tier.HOST else Demand(disk_bytes=taken)


def never(limits: Bounds, each: Ask, quota: int, alone: Demand, sizes: Mapping[str, Size]) -> Refusal | None:
    """Return why a wave, which takes `alone`, does not fit even without any other wave; None if it does."""
    replicas, adapters, slots = each.replicas, len(each.wants), each.slots
    if replicas > limits.high:
        return Refusal(
            "CapacityExceeded",
            f"wants each adapter on {replicas} engines, but the base has at most {limits.high}; "
            f"lower spec.serve.replicas to {limits.high}, or raise spec.engine.replicas.max of the BaseModel",
            mentions=NO_NAMES,
        )
    pins = each.spec.serve.engines
    if pins and (max(pins) >= limits.high or replicas > len(pins) or slots > len(pins) * limits.slots):
        return Refusal(
            "CapacityExceeded",
            f"wants {adapters} adapters x {replicas} replicas on engines {sorted(pins)} only "
            f"({limits.slots} slots each), but the base has engines 0 to {limits.high - 1} at most; list more or "
            "other engines in spec.serve.engines, or request less",
            mentions=NO_NAMES,
        )
    if slots > limits.total:
        return Refusal(
            "CapacityExceeded",
            f"wants {adapters} adapters x {replicas} replicas = {slots} device slots, but {limits.high} engines x "
            f"{limits.slots} slots = {limits.total}; request less, use residency Host or Disk, or raise "
            "spec.engine.replicas.max or spec.adapters.deviceSlots of the BaseModel",
            mentions=NO_NAMES,
        )
    if quota and slots > quota:
        return Refusal(
            "CapacityExceeded",
            f"wants {slots} device slots, but namespace {each.wave.meta.namespace} may hold at most {quota} of this "
            "base; request less, or raise deviceSlots in its entry of spec.tenants of the BaseModel",
            mentions=NO_NAMES,
        )
    return _too_many_bytes(limits, each, alone, sizes)


def _too_many_bytes(limits: Bounds, each: Ask, alone: Demand, sizes: Mapping[str, Size]) -> Refusal | None:
    pins = each.spec.serve.engines
    engines = len(pins) or limits.high
    more = "list more engines in spec.serve.engines, or raise" if pins else "or raise spec.engine.replicas.max or"
    for tier, field, needed, room in (
        ("host memory", "hostMemory", alone.host_bytes, limits.host_bytes),
        ("disk cache", "diskCache", alone.disk_bytes, limits.disk_bytes),
    ):
        if needed > engines * room:
            return Refusal(
                "CapacityExceeded",
                f"wants {in_units(needed)} of {tier}, but {engines} engines x {in_units(room)} = "
                f"{in_units(engines * room)}; request less, {more} spec.adapters.{field} of the BaseModel",
                mentions=NO_NAMES,
            )
        largest = max(each.by_name, key=lambda name: sizes.get(name, _UNREAD).bytes) if needed else ""
        if needed and sizes.get(largest, _UNREAD).bytes > room:
            return Refusal(
                "CapacityExceeded",
                f"adapter {largest} takes {in_units(sizes[largest].bytes)} of {tier}, but an engine has "
                f"{in_units(room)}; raise spec.adapters.{field} of the BaseModel, or leave the adapter out",
                mentions=Mentions(adapters=(largest,)),
            )
    return None


def over_quota(namespace: str, quota: int, taken: int, more: int) -> Refusal | None:
    """Return why a wave must wait for other waves of its own namespace; None if no quota forbids it more slots."""
    if not quota or not more or taken + more <= quota:
        return None
    return Refusal(
        conditions.WAITING_FOR_QUOTA,
        f"needs {more} more device slots; namespace {namespace} holds {taken} of its quota of {quota}",
        terminal=False,
        mentions=NO_NAMES,
    )


def now(limits: Bounds, taken: Demand, more: Demand) -> Refusal | None:
    """Return why a wave must wait while others hold `taken`, perhaps too much by now; None if it fits as well."""
    if more.slots and taken.slots + more.slots > limits.total:
        return Refusal(
            conditions.WAITING_FOR_CAPACITY,
            f"needs {more.slots} more device slots; waves ahead of it hold {taken.slots} of {limits.total} "
            f"({limits.high} engines x {limits.slots}), {max(0, limits.total - taken.slots)} are free",
            terminal=False,
            mentions=NO_NAMES,
        )
    if not more.host_bytes and not more.disk_bytes:
        return None
    for tier, held, needed, each in (
        ("host memory", taken.host_bytes, more.host_bytes, limits.host_bytes),
        ("disk cache", taken.disk_bytes, more.disk_bytes, limits.disk_bytes),
    ):
        if needed and held + needed > limits.high * each:
            return Refusal(
                conditions.WAITING_FOR_CAPACITY,
                f"needs {in_units(needed)} more of {tier}; waves ahead of it hold {in_units(held)} of "
                f"{in_units(limits.high * each)} ({limits.high} engines x {in_units(each)})",
                terminal=False,
                mentions=NO_NAMES,
            )
    return None
