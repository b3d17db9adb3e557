"""Explaining a wave's state: what was considered, what decided, and what is missing. Pure, from the map.

The operator records what every wave asks for and whether it is admitted (`WaveRecord`); where its copies are follows
from the placements and the engines' reports, as for a single adapter.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from mint_contracts import placement_pb2
from mint_contracts.records import TRAIN, Placement, Tier, WaveRecord
from mint_gateway.view import MapView
from mint_gateway.waves.phase import Copies, Copy, phase, wanted_copies

SHOWN = 20  # most missing copies listed by name


def explain_wave(
    view: MapView, record: WaveRecord, others: Mapping[str, WaveRecord]
) -> placement_pb2.WaveExplanation:
    """Explain one wave of the base; `others` are all of the base's waves, including this one."""
    own = [copy for _, each in copies(view, {record.wave: record}) for copy in each]
    counts = Copies()
    counts.count(own)
    missing = [copy for copy in own if copy.lacks]
    wanted = wanted_copies(record)
    return placement_pb2.WaveExplanation(
        wave=record.wave,
        base_model=view.base,
        chosen_by=record.chosen_by,
        adapters=record.adapters,
        replicas=record.replicas,
        residency=record.residency,
        slots=record.slots,
        priority=record.priority,
        allowed_engines=record.engines,
        admitted=record.admitted,
        position=record.position,
        queue=sum(each.position > 0 for each in others.values()),
        reason=record.reason,
        message=record.message,
        capacity=_capacity(view, others),
        namespaces=_namespaces(others),
        wanted=wanted,
        placed=counts.placed,
        ready=counts.ready,
        engines=_engines(view, own),
        missing=[
            placement_pb2.MissingCopy(adapter=copy.adapter, engine=copy.engine, why=copy.lacks)
            for copy in sorted(missing, key=lambda copy: (copy.failure is None, copy.adapter))[:SHOWN]
        ],
        missing_count=max(0, wanted - counts.ready) if record.admitted else 0,
        decided_by=_decided(record, view, wanted, own, missing),
        map_version=view.version or 0,
        phase=phase(record, counts),
    )


def copies(view: MapView, records: Mapping[str, WaveRecord]) -> Iterator[tuple[str, Sequence[Copy]]]:
    """Yield (wave, copies) for each adapter of each wave: at most the wave's `replicas`, the best copies first.

    One pass over the placements serves any number of waves; a wave appears once for each of its adapters.
    """
    for placement in view.placements.values():
        for wave in placement.waves:
            record = records.get(wave)
            if record is not None and record.admitted:
                each = [_copy(view, placement, place.engine, record) for place in placement.places]
                each.sort(key=lambda copy: (bool(copy.lacks), -copy.tier.warmth))
                yield wave, each[: record.replicas]


def _copy(view: MapView, placement: Placement, name: str, record: WaveRecord) -> Copy:
    engine = view.engines.get(name)
    held = engine.held.get(placement.adapter) if engine is not None and engine.alive else None
    tier = Tier.REMOTE if held is None else held.tier
    failure = held.failure if held is not None else None
    lacks = ""
    if engine is None or not engine.alive:
        lacks = "its engine has not reported" if engine is None else "its engine is silent (its heartbeat ran out)"
    elif failure is not None or not engine.record.ready:
        lacks = f"{failure.reason}: {failure.message}" if failure else "its engine is not ready"
    elif held is None or held.source != placement.source or tier.warmth < record.residency.warmth:
        doing = "training, or loading what it published" if record.chosen_by == TRAIN else "loading"
        lacks = f"{doing}; on {tier} now"
    return Copy(placement.adapter, name, tier, failure, lacks)


def _capacity(view: MapView, others: Mapping[str, WaveRecord]) -> placement_pb2.WaveCapacity:
    """Sum up the base's slots. `slots_held` counts each wave's own: a shared adapter is counted once per wave."""
    slots, most = (view.record.device_slots, view.record.engines_max) if view.record else (0, 0)
    return placement_pb2.WaveCapacity(
        engines=len([engine for engine in view.engines.values() if engine.available]),
        engines_max=most,
        slots_per_engine=slots,
        slots_max=slots * most,
        slots_held=sum(each.slots for each in others.values() if each.admitted),
        waves_admitted=sum(each.admitted for each in others.values()),
    )


def _namespaces(others: Mapping[str, WaveRecord]) -> list[placement_pb2.NamespaceShare]:
    """Return the slots and waves that each namespace holds and waits for, with its weight and quota."""
    shares: dict[str, placement_pb2.NamespaceShare] = {}
    for each in others.values():
        name = each.wave.partition("/")[0]
        share = shares.setdefault(
            name, placement_pb2.NamespaceShare(namespace=name, weight=each.weight, quota=each.quota)
        )
        share.slots_held += each.slots if each.admitted else 0
        share.waves_admitted += each.admitted
        share.waves_waiting += each.position > 0
    return [shares[name] for name in sorted(shares)]


def _engines(view: MapView, copies: Sequence[Copy]) -> list[placement_pb2.WaveOnEngine]:
    wanted, ready = Counter(copy.engine for copy in copies), Counter(copy.engine for copy in copies if not copy.lacks)
    failed = Counter(copy.engine for copy in copies if copy.failure)
    found = []
    for name in sorted(wanted):
        engine = view.engines.get(name)
        found.append(
            placement_pb2.WaveOnEngine(
                engine=name,
                available=engine is not None and engine.available,
                wanted=wanted[name],
                ready=ready[name],
                failed=failed[name],
            )
        )
    return found


def _decided(record: WaveRecord, view: MapView, wanted: int, copies: Sequence[Copy], missing: Sequence[Copy]) -> str:
    """Say in one sentence what a person should look at first."""
    if not record.admitted:
        return f"not admitted ({record.reason}): {record.message}"
    failed = [copy for copy in missing if copy.failure]
    if failed:
        return f"admitted; {len(failed)} copies failed, first {failed[0].adapter} on {failed[0].engine}"
    if record.chosen_by == TRAIN:
        return "admitted; `mint wave watch` shows its policies"
    if len(copies) < wanted:
        most = view.record.engines_max if view.record else 0
        ready = sum(engine.available for engine in view.engines.values())
        return f"admitted; {wanted - len(copies)} copies wait for an engine with room ({ready} of {most} engines run)"
    if missing:
        return f"admitted and placed; {len(missing)} copies are not ready yet"
    return "admitted, placed and ready"
