"""Whether a wave can be trained on its base as both are written, and its training with all inputs filled in."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from mint_contracts.errors import CapacityExceeded, InvalidRequest, MintError, SourceNotFound, SourceUnavailable
from mint_contracts.records import Failure, Mentions
from mint_contracts.training import Dataset, Policies, Policy, Train
from mint_contracts.training_records import PartAssignment, PartTraining, TrainAssignment, TrainState, WaveTraining
from mint_contracts.training_reports import latest_reports
from mint_operator.planning import conditions
from mint_operator.planning.podspec import claims
from mint_operator.planning.refusal import ANY_ADAPTERS, NO_NAMES, Refusal
from mint_operator.planning.snapshot import Inputs, ObservedBase, ObservedWave
from mint_operator.planning.turns import by_namespace, quota
from mint_operator.training.data import check_claims, config_maps, inlined
from mint_operator.training.policies import check, check_losses, expand
from mint_operator.training.standing import PolicyStanding, heard


class Fitted(NamedTuple):
    """A wave's training and its policies, with all inputs filled in.

    `unfit` says why the wave is not to be trained, `unknown` why it is unknown how to train policies that no engine
    has, except for those in `told`.
    """

    train: Train
    policies: tuple[Policy, ...]
    unfit: Refusal | None = None
    unknown: Refusal | None = None
    told: frozenset[str] = frozenset()


def fitted(base: ObservedBase, wave: ObservedWave, inputs: Inputs, state: TrainState) -> Fitted:
    """Return what is to be trained of the wave.

    A wave that has begun keeps its policies and examples even on a base that no longer trains. If its manifest cannot
    be read, as when the operator has just started, it continues with the policies that `state` has: these cannot
    change, though what only the manifest says is unknown. Those that have begun go on without the examples of others.
    """
    train, meta = wave.spec.train or Train(policies=Policies()), wave.meta
    if base.spec.training is None:
        message = (
            f"training needs a store that engines can write; set spec.training.store of BaseModel {base.meta.name}"
        )
        train, policies = _as_written(wave, train, state) or (train, _recorded(wave, state))
        return Fitted(train, policies, Refusal(conditions.NO_TRAINING_STORE, message, mentions=NO_NAMES))
    manifest = manifest_of(wave, inputs, state)
    if isinstance(manifest, Refusal):
        written = _as_written(wave, train, state)
        return Fitted(*written, unknown=manifest) if written else Fitted(train, (), manifest)
    policies, mentions = (), ANY_ADAPTERS
    try:
        policies = expand(meta.namespace, meta.name, train, manifest)
        if wrong := _wrong(policies, train, base):
            return Fitted(*_as_begun(wave, train, policies, state), wrong)
        check_claims(train, policies, claims(base))
        mentions = NO_NAMES
        found = _with_examples(wave, train, policies, inputs, state)
        _check_slots(base, wave, train, len(policies))
    except MintError as error:
        policies = policies or _recorded(wave, state)
        return Fitted(*_as_begun(wave, train, policies, state), Refusal.of(error, mentions))
    return found


def _wrong(policies: Sequence[Policy], train: Train, base: ObservedBase) -> Refusal | None:
    """Return why one of a wave's policies cannot be trained; None if each of them can, by itself."""
    for policy in policies:
        try:
            check([policy], base.spec.adapters)
            check_losses([policy], train)
        except MintError as error:
            return Refusal.of(error, Mentions((policy.name,)))
    return None


def manifest_of(wave: ObservedWave, inputs: Inputs, state: TrainState) -> tuple[Policy, ...] | Refusal:
    """Return the policies of a wave's manifest, or why they are unknown; empty if it has no manifest.

    A wave keeps the policies with which it began: the manifest may have been rewritten since, for another wave.
    """
    if wave.spec.train is None or not wave.spec.train.policies.manifest:
        return ()
    found = inputs.manifests.get(wave.meta.uid)
    if found is None or isinstance(found, Failure):
        return _UNREAD if found is None else Refusal.of(found)
    names = _began_with(wave, state) if found else ()
    if not names:
        return found
    given, leased = {policy.name: policy for policy in found}, _leased(wave, state)
    given |= {name: leased[name] for name in names if name in leased}
    return tuple(given[name] for name in names) if given.keys() >= set(names) else _REWRITTEN


def _began_with(wave: ObservedWave, state: TrainState) -> tuple[str, ...]:
    """Return the wave's policies on record if any engine has ever had one of them, else none."""
    key, run = wave.meta.key, wave.meta.uid
    record = state.training.get(key)
    if record is None or record.run != run:
        return ()
    had = leases_of(wave, state) or latest_reports(key, run, state.progress, record.last_words)
    return record.policies if had else ()


def _with_examples(
    wave: ObservedWave, train: Train, policies: tuple[Policy, ...], inputs: Inputs, state: TrainState
) -> Fitted:
    """Fill in examples from ConfigMaps. Policies that have begun keep their own instead. Raises like `inlined`."""
    texts = inputs.config_maps.get(wave.meta.namespace, {})
    record = _begun(wave, state) if config_maps(train) else None
    if record is None:
        return Fitted(*inlined(train, policies, texts))
    if not _began_with(wave, state):
        with suppress(*_UNREADABLE):
            return Fitted(*inlined(train, policies, texts))
    train, policies = _as_begun(wave, train, policies, state)
    try:
        return Fitted(*inlined(train, policies, texts))
    except _UNREADABLE as error:
        begun = _own_examples(wave, record, train, policies, state).keys()
        if not begun:
            raise
        train, _ = inlined(train, tuple(each for each in policies if each.name in begun), texts)
        return Fitted(train, policies, unknown=Refusal.of(error, NO_NAMES), told=frozenset(begun))


def _as_begun(
    wave: ObservedWave, train: Train, policies: tuple[Policy, ...], state: TrainState
) -> tuple[Train, tuple[Policy, ...]]:
    """Return them with the examples that the map has, if the wave has begun.

    Leases and records are written from what is returned: examples that these lack are lost.
    """
    record = _begun(wave, state) if config_maps(train) else None
    if record is None:
        return train, policies
    own = _own_examples(wave, record, train, policies, state)
    found = (msgspec.structs.replace(each, dataset=own.get(each.name, each.dataset)) for each in policies)
    return _examples_of(record, train), tuple(found)


def _own_examples(
    wave: ObservedWave, record: WaveTraining, train: Train, policies: tuple[Policy, ...], state: TrainState
) -> dict[str, Dataset | None]:
    """Return the own examples, if any, of each policy that has begun and needs no ConfigMap.

    Its lease has them or, once an engine has dropped it, the wave's record. One that has ended needs none.
    """
    leased, kept = _leased(wave, state), {each.name: each.dataset for each in record.train.policies.list}
    latest = latest_reports(wave.meta.key, wave.meta.uid, state.progress, record.last_words)
    progress = heard({name: word for name, (_, word) in latest.items()}, train, len(policies))
    found: dict[str, Dataset | None] = {}
    for policy in policies:
        name, word = policy.name, progress.get(policy.name)
        if name in leased:
            found[name] = leased[name].dataset
        elif word is not None:
            dataset = kept.get(name, policy.dataset)
            if dataset is None or dataset.config_map is None:
                found[name] = dataset
            elif PolicyStanding(policy, progress=word).ended(train.steps):
                found[name] = None
    return found


def _leased(wave: ObservedWave, state: TrainState) -> dict[str, Policy]:
    """Return the settings of the wave's policies that have a lease, as far as those can be read."""
    found = leases_of(wave, state)
    return {lease.policy: lease.settings for lease in found if not isinstance(lease, PartAssignment)}


def leases_of(wave: ObservedWave, state: TrainState) -> list[TrainAssignment]:
    """Return the leases of this run of a wave."""
    leases = [lease for of in state.trains.values() for lease in of.values()]
    return [lease for lease in leases if (lease.wave, lease.run) == (wave.meta.key, wave.meta.uid)]


def _begun(wave: ObservedWave, state: TrainState) -> WaveTraining | None:
    """Return the wave's record; None if it has not begun, or if only a part of the record can be read."""
    record = state.training.get(wave.meta.key)
    if record is None or isinstance(record, PartTraining) or record.run != wave.meta.uid:
        return None
    return record if record.policies else None


def _examples_of(record: WaveTraining, train: Train) -> Train:
    return msgspec.structs.replace(train, dataset=record.train.dataset, evaluation=record.train.evaluation)


def _as_written(wave: ObservedWave, train: Train, state: TrainState) -> tuple[Train, tuple[Policy, ...]] | None:
    """Return the wave with policies and examples as the map has them; None if it has not begun."""
    record = _begun(wave, state)
    if record is None:
        return None
    settings = {each.name: each for each in record.train.policies.list} | _leased(wave, state)
    policies = tuple(settings.get(name, Policy(name=name)) for name in record.policies)
    return _examples_of(record, train), policies


def _recorded(wave: ObservedWave, state: TrainState) -> tuple[Policy, ...]:
    """Return the policies that the map has for this run of a wave, by name only."""
    record = state.training.get(wave.meta.key)
    return tuple(Policy(name) for name in record.policies) if record and record.run == wave.meta.uid else ()


def _check_slots(base: ObservedBase, wave: ObservedWave, train: Train, policies: int) -> None:
    """Check that the wave alone fits the base, while it trains and when it serves. Raises CapacityExceeded."""
    engine, serve, slots = base.spec.engine, wave.spec.serve, base.spec.adapters.device_slots
    high = max(engine.replicas.min, engine.replicas.max)
    each = max(train.admission == "Gang", serve.replicas if serve.residency == "Device" else 0)
    most = quota(by_namespace(base.spec.tenants), wave.meta.namespace)
    if most and policies * each > most:
        raise CapacityExceeded(
            f"wave {wave.meta.name}",
            f"wants {policies * each} device slots, but namespace {wave.meta.namespace} may hold at most {most} of "
            "the base; request fewer policies, or raise deviceSlots in its entry of spec.tenants of the BaseModel",
        )
    if serve.replicas > high or policies * each > high * slots:
        raise CapacityExceeded(
            f"wave {wave.meta.name}",
            f"wants {policies} policies x {serve.replicas} replicas in device slots once training is complete, but "
            f"the base has at most {high} engines x {slots} slots; request fewer, use serve.residency Host with "
            "admission Elastic, or raise spec.engine.replicas.max or spec.adapters.deviceSlots of the BaseModel",
        )
    named, held = serve.engines, policies * serve.replicas if serve.residency == "Device" else 0
    if named and (max(named) >= high or serve.replicas > len(named) or held > len(named) * slots):
        raise CapacityExceeded(
            f"wave {wave.meta.name}",
            f"wants {policies} policies x {serve.replicas} replicas on engines {sorted(named)} only ({slots} slots "
            f"each) once training is complete, but the base has engines 0 to {high - 1} at most; list more or other "
            "engines in spec.serve.engines, or request less",
        )


_UNREADABLE = (SourceNotFound, SourceUnavailable, InvalidRequest)
_REWRITTEN = Refusal(
    conditions.MANIFEST_REWRITTEN,
    "the manifest of its policies was rewritten after the wave began, and lacks some of them; restore those lines, "
    "or create a new wave",
    terminal=False,
    mentions=NO_NAMES,
)
_UNREAD = Refusal(
    conditions.MANIFEST_UNREAD,
    "the manifest of its policies has not been read yet",
    terminal=False,
    mentions=NO_NAMES,
)
