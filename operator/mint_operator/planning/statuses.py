"""The statuses of all waves of one base; those of unchanged waves are kept."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Mentions, Placement
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_operator.placing.placement import Placed
from mint_operator.planning.admission import Admission
from mint_operator.planning.asking import Ask
from mint_operator.planning.backlog import Backlogs, Waits, of_wave, times, waits
from mint_operator.planning.copies import copies
from mint_operator.planning.engines import Engine
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.shards import differing, flat
from mint_operator.planning.wave_status import (
    WaveFacts,
    eta_of,
    kept_status,
    missing,
    refused_status,
    unknown_status,
    verdict,
    wave_status,
)
from mint_operator.training.standing import WaveStanding
from mint_operator.training.status import TrainFacts, training_status

_Outcome = tuple[AdapterWaveStatus, Waits, Mentions | None]


class Seen(msgspec.Struct, frozen=True):
    """The facts that all statuses of a base's waves use. `records` is None while the map is not known."""

    records: Mapping[str, Placement] | None
    engines: Mapping[str, Engine]
    base: BaseModelStatus
    times: Mapping[str, float]  # seconds until each engine has loaded what it is given


class WaveStatuses(msgspec.Struct, frozen=True):
    """The statuses, and what they were computed from."""

    by_wave: Mapping[str, AdapterWaveStatus]
    admission: Admission
    placed: Placed | None
    engines: Mapping[str, Engine]
    lacking: object  # why the base is not ready
    waits: Mapping[str, Waits]
    times: Mapping[str, float]
    mentions: Mapping[str, Mentions | None]  # in the Ready conditions of waves that train


def statuses(
    admission: Admission,
    placed: Placed | None,
    engines: Sequence[Engine],
    base: BaseModelStatus,
    now: float,
    before: WaveStatuses | None,
    backlogs: Backlogs,
) -> WaveStatuses:
    """Return the statuses of the waves of one base; `placed` is None while the map is not known."""
    by_name = {engine.name: engine for engine in engines}
    lacking = missing(base)
    asks, refused = admission.asks.by_wave, admission.refused
    stale = None if before is None else _stale(before, admission, placed, by_name, lacking)
    records = None if placed is None else flat(placed.records) if stale is None else placed.records
    seen = Seen(records, by_name, base, times(backlogs))
    found: dict[str, AdapterWaveStatus] = {}
    waiting: dict[str, Waits] = {}
    mentions: dict[str, Mentions | None] = {}
    if before is not None and stale is not None:
        found = {key: status for key, status in before.by_wave.items() if key in asks}
        waiting = {key: each for key, each in before.waits.items() if key in asks}
        mentions = {key: each for key, each in before.mentions.items() if key in asks}
        moved = {name for name, took in seen.times.items() if before.times.get(name) != took}
        for key in [key for key, each in waiting.items() if not moved.isdisjoint(each.engines)] if moved else ():
            found[key] = _later(found[key], waiting[key], seen.times)
    for key in asks if stale is None else sorted(stale):
        found[key], waiting[key], mentions[key] = _status(asks[key], refused.get(key), seen, now)
    return WaveStatuses(found, admission, placed, by_name, lacking, waiting, seen.times, mentions)


def _later(status: AdapterWaveStatus, waits: Waits, took: Mapping[str, float]) -> AdapterWaveStatus:
    """Return the status of a wave of which only its engines' loading times have changed."""
    loading = of_wave(waits, took)
    if loading == status.loading:
        return status
    return msgspec.structs.replace(status, loading=loading, eta=eta_of(status.training, loading))


def _status(ask: Ask, refusal: Refusal | None, seen: Seen, now: float) -> _Outcome:
    """Return a wave's status, what it waits for and, if it trains, what its Ready condition mentions."""
    wave = ask.wave
    if wave.defect and (refusal is None or seen.records is None):
        return kept_status(wave, now), Waits(), None
    if wave.standing is not None:
        return _training(ask, wave.standing, refusal, seen, now)
    if refusal is not None:
        return refused_status(wave, refusal, now), Waits(), None
    facts, waiting = _facts(ask, seen)
    if seen.records is None:
        return unknown_status(wave, facts, now), Waits(), None
    return wave_status(wave, facts, now), waiting, None


def _training(ask: Ask, standing: WaveStanding, refusal: Refusal | None, seen: Seen, now: float) -> _Outcome:
    served, held, waiting = None, None, Waits()
    if seen.records is not None and ask.wants and refusal is None:
        facts, waiting = _facts(ask, seen)
        served, held = wave_status(ask.wave, facts, now), verdict(facts)
    train_facts = TrainFacts(
        standing, seen.engines, served, held, refusal, seen.records is not None, missing(seen.base)
    )
    status, mentions = training_status(ask.wave, train_facts, now)
    return status, waiting, mentions


def _facts(ask: Ask, seen: Seen) -> tuple[WaveFacts, Waits]:
    found = copies(ask.wants, seen.records or {}, seen.engines)
    waiting = waits(found)
    return WaveFacts(ask, found, seen.base, of_wave(waiting, seen.times)), waiting


def _answering(engine: Engine) -> tuple[bool, bool, bool]:
    return engine.alive, engine.ready, engine.starting


def _stale(
    before: WaveStatuses, admission: Admission, placed: Placed | None, engines: Mapping[str, Engine], lacking: object
) -> set[str] | None:
    """Return the waves with any change: in themselves, their turn, copies or engines; None: all may have changed."""
    if placed is None or before.placed is None or placed.changed is None or lacking != before.lacking:
        return None
    names = set(placed.changed)
    for name, engine in engines.items():
        old = before.engines.get(name)
        if old is engine:
            continue
        if old is None or _answering(old) != _answering(engine):
            names.update(placed.given.get(name, ()))
        else:
            names |= differing(engine.held, old.held)
    stale: set[str] = set()
    for name in names:
        for record in (placed.records.get(name), before.placed.records.get(name)):
            if record is not None:
                stale.update(record.waves)
    asks, last = admission.asks.by_wave, before.admission.asks.by_wave
    stale.update([key for key, each in asks.items() if last.get(key) is not each])
    stale |= differing(admission.refused, before.admission.refused)
    return stale & asks.keys()
