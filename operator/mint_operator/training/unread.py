"""Training of waves of which it cannot be read how they are to be trained: it stays as the map has it. Pure.

No lease is granted, not even anew to an engine that has started again: how it would have to train only the spec says.
What engines have been told they do to its end, in slots that nobody else gets.
"""

from collections.abc import Mapping

from mint_contracts.records import Failure
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import PartAssignment, PartTraining, TrainAssignment, TrainState, WaveTraining
from mint_operator.planning.snapshot import Inputs, ObservedWave, TrainKnown
from mint_operator.training.fit import manifest_of
from mint_operator.training.stand import WaveStand, stands


def stand(wave: ObservedWave, state: TrainState, alive: Mapping[str, int]) -> WaveStand:
    """How its policies stand, of which those that engines hold want their slots and no other wants any."""
    known, train = _record(wave, state), wave.spec.train or Train(policies=Policies())
    policies = [Policy(name) for name in known.policies] if known is not None else []
    stood = stands(wave.meta.key, wave.meta.uid, policies, state, alive)
    held = tuple(each.name for each in stood if each.holds and not each.ended(train.steps))
    return WaveStand(train=train, policies=stood, wants_slot=held, kept=True)


def is_unread(wave: ObservedWave, state: TrainState, inputs: Inputs) -> bool:
    """Whether neither the wave nor the map says how its policies are to be trained.

    The wave does not while its manifest is away, as when the operator has just begun.
    """
    train, known = wave.spec.train, _record(wave, state)
    if wave.defect or train is None:
        return bool(wave.defect)
    return isinstance(known, PartTraining) and isinstance(manifest_of(train, inputs), Failure)


def record(wave: ObservedWave, known: TrainKnown) -> WaveTraining | None:
    """The wave's record, as it is. One that the map has lost is written again if all of it is known."""
    found = _record(wave, known.state)
    lost = wave.meta.key not in known.written.training
    return None if lost and isinstance(found, PartTraining) else found


def _record(wave: ObservedWave, state: TrainState) -> WaveTraining | None:
    found = state.training.get(wave.meta.key)
    return found if found is not None and found.run == wave.meta.uid else None


def leases(wave: ObservedWave, known: TrainKnown) -> dict[str, dict[str, TrainAssignment]]:
    """Engine -> policy -> assignment, as they are; of lost ones as `record` has it."""
    found: dict[str, dict[str, TrainAssignment]] = {}
    for engine, of in known.state.trains.items():
        for policy, lease in of.items():
            ours = (lease.wave, lease.run) == (wave.meta.key, wave.meta.uid)
            lost = policy not in known.written.trains.get(engine, {})
            if ours and not (lost and isinstance(lease, PartAssignment)):
                found.setdefault(engine, {})[policy] = lease
    return found
