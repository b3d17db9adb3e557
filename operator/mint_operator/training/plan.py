"""The two points at which training enters a base's plan: which policies get slots, and the leases that follow.

Policies keep the slots that they hold; placement uses the rest. A wave begins in free slots, never before a waiting
serving wave that comes first; serving waves of lower priority give way to it.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

import msgspec

from mint_contracts.records import Placement, Tier
from mint_contracts.source import Source
from mint_contracts.training import Policies, Train
from mint_contracts.training_records import (
    Progress,
    TrainAssignment,
    TrainChange,
    TrainState,
    WaveTraining,
    published_in,
)
from mint_operator.planning.conditions import find
from mint_operator.planning.engines import Engine
from mint_operator.planning.naming import Claim
from mint_operator.planning.shards import flat
from mint_operator.planning.snapshot import BaseMap, Inputs, ObservedBase, ObservedWave, TrainKnown
from mint_operator.planning.statuses import WaveStatuses
from mint_operator.planning.turns import Turn, by_namespace, fair
from mint_operator.training import unread
from mint_operator.training.conflicts import without_conflicts
from mint_operator.training.data import mapped
from mint_operator.training.diff import difference
from mint_operator.training.fit import fitted
from mint_operator.training.last_words import last_words
from mint_operator.training.leases import Ground, leases
from mint_operator.training.memory import ITEM_BYTES, Starts, memory_of
from mint_operator.training.place import Slots, keep, late, moved
from mint_operator.training.share import Share
from mint_operator.training.standing import Reporting, WaveStanding, standings_of, wanting
from mint_operator.training.training_capacity import TrainingCapacity, admit, ask_for_more, turn


class Training(msgspec.Struct, frozen=True):
    """A base's waves, with their standing if they train, and what training takes of the base.

    `reserved` counts policies' slots per engine, `held` per namespace; `demand` counts all of them plus those that
    waves wait for and should get; `engines` is how many engines policies train on, or need for their memory. `saving`
    names a policy of each engine that is to save it and train it no more.
    """

    waves: Sequence[ObservedWave]
    reserved: Mapping[str, int] = {}
    held: Mapping[str, int] = {}
    demand: int = 0
    engines: int = 0
    saving: Mapping[str, str] = {}

    def claims(self, there: Mapping[str, Placement]) -> dict[str, Claim]:
        """Return the claims on policies' names: of waves that have begun, and of those that are kept as they are.

        For the latter, nobody may serve a name that is not `there` yet, since what it is to be cannot be read.
        """
        found: dict[str, Claim] = {}
        for wave in self.waves:
            key, standing = wave.meta.key, wave.standing or WaveStanding(Train(policies=Policies()))
            for policy in standing.policies if standing.kept or standing.begun else ():
                name = policy.name
                if not standing.kept:
                    folder, ended = published_in(standing.store, name).uri, standing.ended(policy)
                    found[name] = Claim(key, ended=ended, published=policy.published, folder=folder)
                elif name not in there:
                    found[name] = Claim(key, all=True)
        return found


def prepared(
    base: ObservedBase,
    waves: Sequence[ObservedWave],
    engines: Sequence[Engine],
    known: BaseMap | None,
    trained: TrainKnown,
    inputs: Inputs,
    outdated: Collection[str],
) -> Training:
    """Decide which policies train where. `engines` are the present ones, of which `outdated` are to restart."""
    training = {wave.meta.key: wave for wave in waves if wave.spec.train is not None}
    reporting, parts = _reporting(engines, trained), _by_wave(trained.state)
    standings = {
        key: _standing(base, wave, parts.get(key, TrainState()), reporting, inputs) for key, wave in training.items()
    }
    order = sorted(training, key=lambda key: (not standings[key].leased, *turn(training[key])))
    serving = [wave for wave in waves if wave.spec.train is None]
    standings = without_conflicts(base, standings, order, serving)
    starts = Starts(known.sizes if known else {}, ITEM_BYTES[base.spec.engine.dtype])
    served, held_bytes = _served(waves, known)
    memory = memory_of(engines, held_bytes, starts)
    slots = Slots(engines, base.spec.adapters.device_slots, served, memory, outdated)
    trains = Counter[str]()
    kept = {key: keep(standings[key], slots, trains) for key in order}
    # Finding what comes first takes a pass over all placements.
    if any(late(standings[key], kept[key], slots) for key in order):
        stranded = _stranded(waves, known, slots, {engine.name for engine in engines if engine.lost})
        kept = {
            key: moved(standings[key], kept[key], slots, bisect_left(stranded, turn(training[key]))) for key in order
        }
    held = Counter[str]()
    for key, wave in training.items():
        held[wave.meta.namespace] += len(kept[key])
    shares = [Share(wave, standings.get(wave.meta.key)) for wave in waves]
    capacity = TrainingCapacity(base, shares, slots, held)
    turns = _in_turn(base, training, standings, order, held)
    for key in turns:
        if standings[key].kept:
            standings[key] = msgspec.structs.replace(standings[key], pins=kept[key])
        else:
            standings[key] = admit(training[key], standings[key], kept[key], capacity)
    for key in turns:
        if not standings[key].kept:
            ask_for_more(training[key], standings[key], capacity)
    reserved = Counter(engine for standing in standings.values() for engine in standing.pins.values())
    ordinals = {engine.name: engine.ordinal for engine in engines}
    return Training(
        waves=[
            msgspec.structs.replace(wave, standing=standings[wave.meta.key]) if wave.meta.key in standings else wave
            for wave in waves
        ],
        reserved=dict(reserved),
        held=dict(capacity.held),
        demand=capacity.demand,
        engines=max(capacity.engines, *(ordinals[name] + 1 for name in reserved), 0),
        saving=_saving(standings.values()),
    )


def _saving(standings: Iterable[WaveStanding]) -> dict[str, str]:
    """Return, by engine, a policy that it is to save and train no more."""
    return {each.engine: each.name for of in standings for each in of.policies if of.is_saving(each)}


def decided(
    base: ObservedBase,
    training: Training,
    engines: Sequence[Engine],
    statuses: WaveStatuses,
    known: TrainKnown,
    now: float,
) -> TrainChange:
    """Return what to write about training, once the statuses are known."""
    by_name = {engine.name: engine for engine in engines}
    waves: dict[str, WaveTraining] = {}
    trains: dict[str, dict[str, TrainAssignment]] = {}
    for wave in training.waves:
        if wave.standing is None:
            continue
        key, standing = wave.meta.key, wave.standing
        if standing.kept:
            record = unread.record(wave, standing, known)
            waves |= {key: record} if record is not None else {}
            for engine, given in unread.leases(wave, known).items():
                trains.setdefault(engine, {}).update(given)
            continue
        waves[key] = _record(base, wave, standing, statuses, known.state.training.get(key))
        if base.spec.training is None:  # there is no store to save to
            continue
        admitted = standing.unfit is None and not standing.waiting
        for engine, given in leases(
            standing, Ground(key, wave.meta.uid, admitted, standing.pins, by_name, int(now * 1000))
        ).items():
            trains.setdefault(engine, {}).update(given)
    return difference(known.written, waves, trains)


def _reporting(engines: Sequence[Engine], trained: TrainKnown) -> Reporting:
    return {
        (engine.name, name, word.lease): engine.record.incarnation
        for engine in engines
        if engine.record is not None
        for name, word in trained.written.progress.get(engine.name, {}).items()
        if word.incarnation in {0, engine.record.incarnation}  # not what an earlier start has left
    }


def _by_wave(state: TrainState) -> dict[str, TrainState]:
    """Return each wave's own part of the state, so that nobody goes through all of it for each wave or policy."""
    trains = defaultdict[str, dict[str, dict[str, TrainAssignment]]](dict)
    progress = defaultdict[str, dict[str, dict[str, Progress]]](dict)
    for engine, leases_of in state.trains.items():
        for name, lease in leases_of.items():
            trains[lease.wave].setdefault(engine, {})[name] = lease
    for engine, words in state.progress.items():
        for name, word in words.items():
            progress[word.wave].setdefault(engine, {})[name] = word
    return {
        wave: TrainState({wave: state.training[wave]} if wave in state.training else {}, trains[wave], progress[wave])
        for wave in {*state.training, *trains, *progress}
    }


def _standing(
    base: ObservedBase, wave: ObservedWave, state: TrainState, reporting: Reporting, inputs: Inputs
) -> WaveStanding:
    """Return a wave's standing; `state` is its own part."""
    if unread.is_unread(wave, state, inputs):
        return unread.standing(wave, state, reporting)
    train, policies, unfit, unknown, told = fitted(base, wave, inputs, state)
    found = standings_of(wave.meta.key, wave.meta.uid, policies, train, state, reporting)
    standing = WaveStanding(train, found, unfit=unfit, store=_store(base, wave, state), unknown=unknown)
    able = tuple(each for each in found if unknown is None or each.assignment is not None or each.name in told)
    needy = () if unfit else wanting(train, able, stopped=standing.stopped)
    return msgspec.structs.replace(standing, wants_slot=needy)


def _store(base: ObservedBase, wave: ObservedWave, state: TrainState) -> Source:
    """Return where a wave's policies are saved and published, or were if its base no longer trains."""
    if base.spec.training is not None:
        return base.spec.training.store.source
    record = state.training.get(wave.meta.key)
    return record.store if record is not None and record.run == wave.meta.uid else Source(uri="")


def _in_turn(
    base: ObservedBase,
    training: Mapping[str, ObservedWave],
    standings: Mapping[str, WaveStanding],
    order: Sequence[str],
    held: Mapping[str, int],
) -> list[str]:
    """Return waves that already train, then the others by their namespaces' turns, which count what policies hold."""

    def turn_of(key: str) -> Turn:
        meta = training[key].meta
        return Turn(training[key].spec.priority, meta.namespace, len(standings[key].wants_slot))

    leased = [key for key in order if standings[key].leased]
    others = [key for key in order if not standings[key].leased]
    return leased + fair(others, turn_of, by_namespace(base.spec.tenants), held)


def _served(waves: Sequence[ObservedWave], known: BaseMap | None) -> tuple[Counter[str], Counter[str]]:
    """Return what adapters that any of the waves wants take of each engine: slots, and host memory.

    Spare copies do not count, nor does the memory of adapters of unknown size.
    """
    slots, memory = Counter[str](), Counter[str]()
    if known is None:
        return slots, memory
    wanted, sizes = {wave.meta.key for wave in waves}, known.sizes
    for placement in flat(known.state.placements).values():  # at 64,000 adapters this takes most of a plan's time
        if wanted.isdisjoint(placement.waves):
            continue
        for place in placement.places:
            if place.residency is Tier.DEVICE and not place.spare:
                slots[place.engine] += 1
            elif place.residency is Tier.HOST and placement.adapter in sizes and not place.spare:
                memory[place.engine] += sizes[placement.adapter].bytes
    return slots, memory


def _stranded(
    waves: Sequence[ObservedWave], known: BaseMap | None, slots: Slots, lost: Set[str]
) -> list[tuple[int, str, str]]:
    """Return the sorted turns of served copies that can leave `lost` engines for slots on others."""
    if known is None or not lost:
        return []
    turns = {wave.meta.key: turn(wave) for wave in waves}
    pinned = {wave.meta.key for wave in waves if wave.spec.serve.engines}
    open_ = {name for name in slots.usable if slots.free[name] > 0}
    found = []
    for placement in known.state.placements.values():
        held = {each.engine for each in placement.places if each.residency is Tier.DEVICE and not each.spare}
        leaving, asking = lost & held, [turns[key] for key in placement.waves if key in turns]
        if leaving and asking and open_ - held and pinned.isdisjoint(placement.waves):
            found += [min(asking)] * len(leaving)
    return sorted(found)


def _record(
    base: ObservedBase,
    wave: ObservedWave,
    standing: WaveStanding,
    statuses: WaveStatuses,
    before: WaveTraining | None,
) -> WaveTraining:
    key = wave.meta.key
    status = statuses.by_wave[key]
    ready = find(status.conditions, "Ready")
    words = before.last_words if before is not None and before.run == wave.meta.uid else ()
    trains = status.training is not None and status.training.policies.running > 0
    waits = ready is not None and ready.status != "True" and not trains
    own = mapped(standing.train, (policy.settings for policy in standing.policies))
    return WaveTraining(
        wave=key,
        generation=wave.meta.generation,
        train=msgspec.structs.replace(standing.train, policies=own),
        store=standing.store,
        run=wave.meta.uid,
        policies=tuple(policy.name for policy in standing.policies),
        phase=status.phase,
        message=ready.message if ready is not None and waits else "",
        mentions=statuses.mentions.get(key) if waits else None,
        last_words=last_words(standing, words, trains=base.spec.training is not None),
    )
