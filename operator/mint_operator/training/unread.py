"""Training of waves whose training settings cannot be read: it stays as the map has it. Pure.

No lease is granted, not even to an engine that has restarted: only the spec says how it would have to train. Engines
finish what they have been ordered to do, in slots that nobody else gets.
"""

import msgspec

from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import PartAssignment, PartTraining, TrainAssignment, TrainState, WaveTraining
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.snapshot import Inputs, ObservedWave, TrainKnown
from mint_operator.training.fit import leases_of, manifest_of
from mint_operator.training.last_words import last_words
from mint_operator.training.standing import Reporting, WaveStanding, standings_of


def standing(wave: ObservedWave, state: TrainState, reporting: Reporting) -> WaveStanding:
    """Return the standing of its policies; only those that engines hold want slots."""
    known, train = _record(wave, state), wave.spec.train or Train(policies=Policies())
    policies = [Policy(name) for name in known.policies] if known is not None else []
    found = standings_of(wave.meta.key, wave.meta.uid, policies, train, state, reporting)
    held = tuple(each.name for each in found if each.holds and not each.ended(train.steps))
    return WaveStanding(train=train, policies=found, wants_slot=held, kept=True)


def is_unread(wave: ObservedWave, state: TrainState, inputs: Inputs) -> bool:
    """Whether neither the wave nor the map says how its policies are to be trained.

    The wave does not while its manifest is unread, as when the operator has just started, or unreadable; the map does
    not if this version can read only a part of the wave's record or of a lease.
    """
    train, known = wave.spec.train, _record(wave, state)
    if wave.defect or train is None:
        return bool(wave.defect)
    if not isinstance(manifest_of(wave, inputs, state), Refusal):
        return False
    return isinstance(known, PartTraining) or any(isinstance(each, PartAssignment) for each in leases_of(wave, state))


def record(wave: ObservedWave, standing: WaveStanding, known: TrainKnown) -> WaveTraining | None:
    """Return the wave's record with the current last words on its policies; None if there is none to write.

    A partly read record stays as it is, and is not written again if the map has lost it.
    """
    found = _record(wave, known.state)
    if isinstance(found, PartTraining):
        return found if wave.meta.key in known.written.training else None
    return found and msgspec.structs.replace(found, last_words=last_words(standing, found.last_words))


def _record(wave: ObservedWave, state: TrainState) -> WaveTraining | None:
    found = state.training.get(wave.meta.key)
    return found if found is not None and found.run == wave.meta.uid else None


def leases(wave: ObservedWave, known: TrainKnown) -> dict[str, dict[str, TrainAssignment]]:
    """Return the wave's leases as they are, engine -> policy -> assignment; lost ones only if completely read."""
    found: dict[str, dict[str, TrainAssignment]] = {}
    for engine, of in known.state.trains.items():
        for policy, lease in of.items():
            ours = (lease.wave, lease.run) == (wave.meta.key, wave.meta.uid)
            lost = policy not in known.written.trains.get(engine, {})
            if ours and not (lost and isinstance(lease, PartAssignment)):
                found.setdefault(engine, {})[policy] = lease
    return found
