"""Replaces the spec of a wave that cannot be read by what the map says that the wave has. Pure.

A newer version wrote such a spec; its CRDs stay when it is rolled back. The wave keeps asking for what it was given,
and for nothing else; it comes before all others, so that nobody takes its names or its room. Its training is left
alone (`training.unread`), since only the spec says how to continue it.
"""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import MapState, Placement, Tier, WaveRecord
from mint_contracts.resources import AdapterWaveSpec, BaseModelRef, Residency, Serve
from mint_contracts.training_records import WaveTraining
from mint_operator.planning.snapshot import BaseMap, Listed, ObservedWave, Snapshot, TrainKnown

_NO_MAP = BaseMap(state=MapState(version=None, base=None, placements={}, assigned={}))
_RESIDENCIES: Mapping[Tier, Residency] = {Tier.DEVICE: "Device", Tier.HOST: "Host", Tier.DISK: "Disk"}


_Had = Mapping[str, Sequence[Placement]]  # wave -> its placements


def recalled(snapshot: Snapshot) -> list[ObservedWave]:
    """Return the waves that are not being deleted; those that cannot be read with all that the map says about them.

    An unreadable wave belongs to the base that has it in the map, else to the one that it names.
    """
    waves = [wave for wave in snapshot.waves if not wave.meta.deleting]
    unread = {wave.meta.key for wave in waves if wave.defect}
    had = {base: _had(known, unread) for base, known in snapshot.maps.items()} if unread else {}
    return [_recalled(wave, snapshot, had) if wave.defect else wave for wave in waves]


def _recalled(wave: ObservedWave, snapshot: Snapshot, had: Mapping[str, _Had]) -> ObservedWave:
    key, base = wave.meta.key, _home(wave, snapshot)
    record = _records(snapshot.maps.get(base, _NO_MAP)).get(key)
    training = _training(wave, snapshot.training.get(base))
    placements = had.get(base, {}).get(key, ())
    namespace, _, name = base.rpartition("/")
    spec = AdapterWaveSpec(
        base_model_ref=BaseModelRef(name, namespace),
        train=training.train if training is not None else None,
        serve=_serve(record, placements),
        priority=record.priority if record is not None else max((each.priority for each in placements), default=0),
    )
    listed = tuple(Listed(each.adapter, each.source) for each in sorted(placements, key=lambda each: each.adapter))
    shared_with = {each.adapter: tuple(one for one in each.waves if one != key) for each in placements}
    return msgspec.structs.replace(wave, spec=spec, listed=listed, record=record, shared_with=shared_with)


def _had(known: BaseMap, waves: set[str]) -> _Had:
    """Return what these waves have of a base, in one pass over its placements."""
    found: dict[str, list[Placement]] = {}
    for each in placements_of(known).values():
        for wave in waves.intersection(each.waves):
            found.setdefault(wave, []).append(each)
    return found


def _home(wave: ObservedWave, snapshot: Snapshot) -> str:
    """Return the base that has the wave in its map or training; preferably, or if none has, the one that it names."""
    key = wave.meta.key
    found = [base for base, known in snapshot.maps.items() if key in _records(known)]
    found += [base for base, trained in snapshot.training.items() if _training(wave, trained) is not None]
    return wave.base if wave.base in found or not found else min(found)


def _records(known: BaseMap) -> Mapping[str, WaveRecord]:
    found = known.state.waves
    return found if known.state.version is not None else {**known.recorded, **found}


def placements_of(known: BaseMap) -> Mapping[str, Placement]:
    """Return what the map has placed; until a lost map is complete again, together with what it had before."""
    found = known.state.placements
    return found if known.state.version is not None else {**known.remembered, **found}


def _training(wave: ObservedWave, trained: TrainKnown | None) -> WaveTraining | None:
    """Return the wave's training record, unless it is that of an earlier wave of the same name."""
    record = None if trained is None else trained.state.training.get(wave.meta.key)
    return record if record is not None and record.run == wave.meta.uid else None


def _serve(record: WaveRecord | None, placements: Sequence[Placement]) -> Serve:
    """Return how the wave's adapters are held; inferred from the places if the map has no record of the wave."""
    if record is not None:
        ordinals = [int(engine.rpartition("-")[2]) for engine in record.engines]
        return Serve(record.replicas, _RESIDENCIES[record.residency], ordinals)
    places = [[place for place in each.places if not place.spare] for each in placements]
    tier = next((place.residency for each in places for place in each), Tier.DEVICE)
    return Serve(max([1, *map(len, places)]), _RESIDENCIES[tier])
