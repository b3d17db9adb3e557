"""The statuses of all waves of one base; those of which nothing changed stay as they were."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Placement
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_operator.placing.placement import Placed
from mint_operator.planning.adapters import Refusal, Want
from mint_operator.planning.admission import Admission
from mint_operator.planning.backlog import Backlogs, Waits, of_wave, times, waits
from mint_operator.planning.copies import copies
from mint_operator.planning.engines import Engine
from mint_operator.planning.shards import differing, flat
from mint_operator.planning.snapshot import ObservedWave
from mint_operator.planning.wave_status import WaveFacts, refused_status, unknown_status, wave_status
from mint_operator.training.stand import WaveStand
from mint_operator.training.status import TrainFacts, training_status


class Basis(msgspec.Struct, frozen=True):
    """What a wave's status was worked out from, beside its copies and their engines."""

    wave: ObservedWave
    wants: tuple[Want, ...]
    refusal: Refusal | None


class Seen(msgspec.Struct, frozen=True):
    """What all waves of the base are told by. `records` is None while the map is not known."""

    records: Mapping[str, Placement] | None
    engines: Mapping[str, Engine]
    base: BaseModelStatus
    times: Mapping[str, float]  # until each has loaded what it is given


class Told(msgspec.Struct, frozen=True):
    """The statuses, and what they were worked out from."""

    statuses: Mapping[str, AdapterWaveStatus]
    bases: Mapping[str, Basis]
    placed: Placed | None
    engines: Mapping[str, Engine]
    ready: object  # the base's Ready condition
    waits: Mapping[str, Waits]
    times: Mapping[str, float]


def statuses(
    waves: Sequence[ObservedWave],
    admission: Admission,
    placed: Placed | None,
    engines: Sequence[Engine],
    base: BaseModelStatus,
    now: float,
    before: Told | None,
    backlogs: Backlogs,
) -> Told:
    """Statuses of the waves of one base; `placed` is None while the map is not known."""
    by_name = {engine.name: engine for engine in engines}
    ready = next((found for found in base.conditions if found.type == "Ready"), None)
    stale = None if before is None else _stale(before, placed, by_name, ready)
    records = {} if placed is None else flat(placed.records) if stale is None else placed.records
    seen = Seen(None if placed is None else records, by_name, base, times(backlogs))
    moved = {name for name, took in seen.times.items() if before is None or before.times.get(name) != took}
    found, bases, waiting = {}, {}, {}
    for wave in waves:
        key = wave.meta.key
        basis = Basis(wave, admission.wanted(key), admission.refused.get(key))
        bases[key] = basis
        if before is not None and stale is not None and key not in stale and _same(before.bases.get(key), basis):
            bases[key], waiting[key] = before.bases[key], before.waits[key]
            found[key] = before.statuses[key]
            if waiting[key].copies and not moved.isdisjoint(waiting[key].engines):
                found[key] = _later(found[key], waiting[key], seen.times)
        else:
            found[key], waiting[key] = _status(basis, seen, now)
    return Told(found, bases, placed, by_name, ready, waiting, seen.times)


def _later(status: AdapterWaveStatus, waits: Waits, took: Mapping[str, float]) -> AdapterWaveStatus:
    """The status of a wave whose engines have got on with the loads of others."""
    loading = of_wave(waits, took)
    return status if loading == status.loading else msgspec.structs.replace(status, loading=loading)


def _status(basis: Basis, seen: Seen, now: float) -> tuple[AdapterWaveStatus, Waits]:
    """The status of a wave, and what it waits for."""
    if basis.wave.stand is not None:
        return _training(basis, basis.wave.stand, seen, now)
    if basis.refusal is not None:
        return refused_status(basis.wave, basis.refusal, now), Waits()
    facts, waiting = _facts(basis, seen)
    if seen.records is None:
        return unknown_status(basis.wave, facts, now), Waits()
    return wave_status(basis.wave, facts, now), waiting


def _training(basis: Basis, stand: WaveStand, seen: Seen, now: float) -> tuple[AdapterWaveStatus, Waits]:
    served, waiting = None, Waits()
    if seen.records is not None and basis.wants and basis.refusal is None:
        facts, waiting = _facts(basis, seen)
        served = wave_status(basis.wave, facts, now)
    told = TrainFacts(stand, seen.engines, served, basis.refusal, seen.records is not None)
    return training_status(basis.wave, told, now), waiting


def _facts(basis: Basis, seen: Seen) -> tuple[WaveFacts, Waits]:
    found = copies(basis.wants, seen.records or {}, seen.engines)
    waiting = waits(found)
    return WaveFacts(basis.wants, found, seen.base, of_wave(waiting, seen.times)), waiting


def _same(old: Basis | None, new: Basis) -> bool:
    return old is not None and old.wave is new.wave and old.wants is new.wants and old.refusal == new.refusal


def _stale(before: Told, placed: Placed | None, engines: Mapping[str, Engine], ready: object) -> set[str] | None:
    """Waves whose copies or engines are not what they were; None: any may be."""
    if placed is None or before.placed is None or placed.afresh or ready != before.ready:
        return None
    names = set(placed.changed)
    for name, engine in engines.items():
        old = before.engines.get(name)
        if old is engine:
            continue
        if old is None or (old.alive, old.ready) != (engine.alive, engine.ready):
            names.update(placed.given.get(name, ()))
        else:
            names |= differing(engine.held, old.held)
    stale: set[str] = set()
    for name in names:
        for record in (placed.records.get(name), before.placed.records.get(name)):
            if record is not None:
                stale.update(record.waves)
    return stale
