"""The map's record of each wave, which explains why the wave stands as it does. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.records import EXPIRED, TRAIN, Tier, WaveRecord
from mint_contracts.resources import AdapterWaveSpec, Tenant
from mint_operator.planning import conditions
from mint_operator.planning.adapters import asked, pins
from mint_operator.planning.admission import Admission
from mint_operator.planning.asking import Ask
from mint_operator.planning.expiry import ending, named
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.planning.turns import by_namespace


class Recorded(msgspec.Struct, frozen=True):
    """The records by wave, and what they were made from."""

    records: Mapping[str, WaveRecord] = {}
    asks: Mapping[str, Ask] = {}
    refused: Mapping[str, Refusal] = {}


def wave_records(
    base: ObservedBase, admission: Admission, expired: Iterable[ObservedWave], before: Recorded
) -> Recorded:
    """Return each wave's record; one that is unchanged, or that stands in for a spec, stays the same object.

    The records of `expired` waves say only that they have expired.
    """
    tenants, found = by_namespace(base.spec.tenants), dict[str, WaveRecord]()
    for key, each in admission.asks.by_wave.items():
        refusal, old = admission.refused.get(key), before.records.get(key)
        if old is not None and before.asks.get(key) is each and before.refused.get(key) == refusal:
            found[key] = old
            continue
        if each.kept and each.wave.record is not None:
            found[key] = each.wave.record
            continue
        record = _active_record(each, tenants.get(each.wave.meta.namespace), refusal)
        found[key] = old if old is not None and old == record else record
    for wave in expired:
        old, record = before.records.get(wave.meta.key), _expired(wave, tenants.get(wave.meta.namespace))
        found[wave.meta.key] = old if old is not None and old == record else record
    return Recorded(found, admission.asks.by_wave, admission.refused)


def expired_records(expired: Iterable[ObservedWave], known: Mapping[str, WaveRecord]) -> dict[str, WaveRecord]:
    """Return the records of expired waves of a base whose spec cannot be read.

    They take the tenants' weights and quotas from the `known` records in the map instead.
    """
    tenants = {each.wave.partition("/")[0]: (each.weight, each.quota) for each in known.values()}
    found = {}
    for wave in expired:
        weight, quota = tenants.get(wave.meta.namespace, (1, 0))
        found[wave.meta.key] = msgspec.structs.replace(_expired(wave, None), weight=weight, quota=quota)
    return found


def _active_record(each: Ask, tenant: Tenant | None, refusal: Refusal | None) -> WaveRecord:
    standing, chosen_by = each.wave.standing, _chosen_by(each.spec, kept=each.kept)
    adapters = len(standing.policies) if standing is not None else len(each.wants)
    trained = len(standing.wants_slot) if standing is not None else 0
    slots = each.slots + trained  # revisions are served in slots once their policies have ended
    if standing is None and each.refusal is not None:
        adapters, slots = asked(each.wave), _slots(each.wave, asked(each.wave))
    return _record(each.wave, chosen_by, adapters, slots, tenant, _refusal(each, refusal))


def _expired(wave: ObservedWave, tenant: Tenant | None) -> WaveRecord:
    adapters, refusal = named(wave), Refusal(EXPIRED, ending(wave), mentions=NO_NAMES)
    return _record(wave, _chosen_by(wave.spec), adapters, _slots(wave, adapters), tenant, refusal)


def _slots(wave: ObservedWave, adapters: int) -> int:
    """Return the device slots that this number of adapters takes as the wave serves them."""
    serve = wave.spec.serve
    return adapters * serve.replicas if serve.residency == "Device" else 0


def _record(
    wave: ObservedWave,
    chosen_by: str,
    adapters: int,
    slots: int,
    tenant: Tenant | None,
    refusal: Refusal | None,
) -> WaveRecord:
    serve = wave.spec.serve
    return WaveRecord(
        wave=wave.meta.key,
        chosen_by=chosen_by,
        adapters=adapters,
        replicas=serve.replicas,
        residency=Tier(serve.residency),
        slots=slots,
        priority=wave.spec.priority,
        engines=pins(wave.spec),
        weight=tenant.weight if tenant is not None else 1,
        quota=tenant.device_slots if tenant is not None else 0,
        admitted=refusal is None,
        position=refusal.position if refusal is not None else 0,
        reason=refusal.reason if refusal is not None else "",
        message=conditions.shortened(refusal.message) if refusal is not None else "",
        mentions=refusal.mentions if refusal is not None else None,
    )


def _refusal(each: Ask, refusal: Refusal | None) -> Refusal | None:
    """Return why a wave is not admitted; a wave that trains has its own reasons."""
    standing = each.wave.standing
    why = standing.refused if refusal is None and standing is not None else None
    return refusal if why is None else why


def _chosen_by(spec: AdapterWaveSpec, *, kept: bool = False) -> str:
    """Return the field of the spec that chooses the adapters; "placement" if only the placement map tells them."""
    given = spec.adapters
    if spec.train is not None:
        return TRAIN
    if given.selector is not None:
        return "selector"
    if kept:
        return "placement"
    return "manifest" if given.manifest else "names" if given.names else "sources"
