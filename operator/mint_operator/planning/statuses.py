"""The statuses of all waves of one base; those of which nothing changed stay as they were."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Placement
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_operator.placing.placement import Placed
from mint_operator.planning.adapters import Refusal, Want
from mint_operator.planning.admission import Admission
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


class Told(msgspec.Struct, frozen=True):
    """The statuses, and what they were worked out from."""

    statuses: Mapping[str, AdapterWaveStatus]
    bases: Mapping[str, Basis]
    placed: Placed | None
    engines: Mapping[str, Engine]
    ready: object  # the base's Ready condition


def statuses(
    waves: Sequence[ObservedWave],
    admission: Admission,
    placed: Placed | None,
    engines: Sequence[Engine],
    base: BaseModelStatus,
    now: float,
    before: Told | None = None,
) -> Told:
    """Statuses of the waves of one base; `placed` is None while the map is not known."""
    by_name = {engine.name: engine for engine in engines}
    ready = next((found for found in base.conditions if found.type == "Ready"), None)
    stale = None if before is None else _stale(before, placed, by_name, ready)
    records = {} if placed is None else flat(placed.records) if stale is None else placed.records
    found, bases = {}, {}
    for wave in waves:
        key = wave.meta.key
        basis = Basis(wave, admission.wanted(key), admission.refused.get(key))
        bases[key] = basis
        if before is not None and stale is not None and key not in stale and _same(before.bases.get(key), basis):
            found[key], bases[key] = before.statuses[key], before.bases[key]
            continue
        found[key] = _status(basis, None if placed is None else records, by_name, base, now)
    return Told(found, bases, placed, by_name, ready)


def _status(
    basis: Basis,
    records: Mapping[str, Placement] | None,
    engines: Mapping[str, Engine],
    base: BaseModelStatus,
    now: float,
) -> AdapterWaveStatus:
    if basis.wave.stand is not None:
        return _training(basis, basis.wave.stand, records, engines, base, now)
    if basis.refusal is not None:
        return refused_status(basis.wave, basis.refusal, now)
    facts = WaveFacts(wants=basis.wants, copies=copies(basis.wants, records or {}, engines), base=base)
    return unknown_status(basis.wave, facts, now) if records is None else wave_status(basis.wave, facts, now)


def _training(
    basis: Basis,
    stand: WaveStand,
    records: Mapping[str, Placement] | None,
    engines: Mapping[str, Engine],
    base: BaseModelStatus,
    now: float,
) -> AdapterWaveStatus:
    served = None
    if records is not None and basis.wants and basis.refusal is None:
        facts = WaveFacts(wants=basis.wants, copies=copies(basis.wants, records, engines), base=base)
        served = wave_status(basis.wave, facts, now)
    return training_status(basis.wave, TrainFacts(stand, engines, served, basis.refusal, records is not None), now)


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
