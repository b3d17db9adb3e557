"""The operator's messages about waves, as shown by the gateway: no API key reads a name that it does not open.

The wording is free; these tests check that the operator records beside each message whom it names. Each world states
what its message must name, so that no test passes because there was no message.
"""

from collections.abc import Callable, Sequence

import msgspec
import pytest

from mint_contracts.records import Failure, WaveRecord
from mint_contracts.resources import Catalog, Manifests, Selector, Serve, Tenant, WaveAdapters
from mint_contracts.training import Dataset, Policies, Policy
from mint_contracts.training_records import Stage, WaveTraining
from mint_gateway.security.scope import Scope
from mint_gateway.security.scope_filter import training_within, waves_within
from mint_operator.planning.snapshot import Inputs, ObservedWave
from tests.operator.training_worlds import FAILURE, World, base, dead, engines, training_wave
from tests.operator.worlds import unread, wave

LATER = "2026-01-02T00:00:00Z"
ALPHA, BETA, GAMMA = NAMES = ("team/alpha", "team/beta", "gamma-7")
ONE, THEIRS = "team/one", "acme/theirs"
SECRET = "s3://secret/place"
GIVEN = Policies(list=(Policy(ALPHA), Policy(BETA)))
UNREAD = Inputs(manifests={"uid-two": Failure("InvalidRequest", f"{SECRET} names {BETA} twice", terminal=True)})


def planned(*waves: ObservedWave, trains: bool = False) -> World:
    """Return a settled world with these waves; with `trains`, their policies are training."""
    world = World(base(2, 2, tenants=[Tenant(namespace="acme")]), list(waves), engines(2))
    for _ in range(3):
        world.step()
    if trains:
        world.hear(Stage.RUNNING, 1)
    return world


def joined(world: World, *waves: ObservedWave) -> World:
    """Add these waves to a world, and plan until it settles."""
    world.waves += waves
    for _ in range(2):
        world.step()
    return world


def over(adapters: WaveAdapters, *, catalog: bool = True) -> World:
    """Return a world with one wave of these adapters, over a base without a store, with or without a catalog."""
    two = wave("two")
    two = msgspec.structs.replace(two, spec=msgspec.structs.replace(two.spec, adapters=adapters), listed=())
    world = World(base(), [two], engines(1))
    limits = msgspec.structs.replace(world.base.spec.adapters, store=None)
    manifests = Catalog(Manifests("s3://catalog")) if catalog else None
    spec = msgspec.structs.replace(world.base.spec, adapters=limits, catalog=manifests)
    world.base = msgspec.structs.replace(world.base, spec=spec)
    world.step()
    return world


def failed() -> World:
    world = planned(training_wave("two", policies=GIVEN, max_failed=0), trains=True)
    world.say(Stage.FAILED, 2, BETA, failure=FAILURE)
    for _ in range(2):
        world.step()
        world.say(Stage.CANCELLED, 2, ALPHA)
    world.step()
    return world


def with_inputs(world: World, inputs: Inputs) -> World:
    world.inputs = inputs
    world.step()
    return world


Worlds = dict[str, tuple[Callable[[], World], Sequence[str]]]

NAMING: Worlds = {
    "twice": (lambda: planned(wave("two", [ALPHA, ALPHA, BETA])), [ALPHA]),
    "another source": (
        lambda: joined(planned(wave("one", [ALPHA])), wave("two", sources={ALPHA: SECRET}, created=LATER)),
        [ALPHA, ONE, SECRET],
    ),
    "another source in another namespace": (
        lambda: joined(
            planned(wave("theirs", [GAMMA], namespace="acme")), wave("two", sources={GAMMA: SECRET}, created=LATER)
        ),
        [GAMMA, SECRET],
    ),
    "other engines": (
        lambda: joined(planned(wave("one", [ALPHA], engines=[0])), wave("two", [ALPHA], engines=[1], created=LATER)),
        [ALPHA, ONE],
    ),
    "what another wave trains": (
        lambda: joined(planned(training_wave("one", policies=GIVEN), trains=True), wave("two", [BETA])),
        [BETA, ONE],
    ),
    "what a wave of another namespace trains": (
        lambda: joined(
            planned(training_wave("theirs", policies=GIVEN, namespace="acme"), trains=True), wave("two", [BETA])
        ),
        [BETA],
    ),
    "a policy that another wave trains": (
        lambda: joined(
            planned(training_wave("one", policies=GIVEN), trains=True), training_wave("two", policies=GIVEN)
        ),
        [ALPHA, ONE],
    ),
    "a policy that another wave serves": (
        lambda: planned(wave("one", sources={BETA: SECRET}), training_wave("two", policies=GIVEN)),
        [BETA, ONE, SECRET],
    ),
    "a claim": (lambda: planned(wave("two", sources={ALPHA: "pvc://elsewhere/x"})), [ALPHA]),
    "a revision": (lambda: over(WaveAdapters(names=[BETA, f"{ALPHA}@2"]), catalog=False), [ALPHA]),
    "a prefix": (lambda: over(WaveAdapters(selector=Selector(prefix=ALPHA))), [ALPHA]),
    "a policy that is too large": (
        lambda: planned(training_wave("two", policies=Policies(list=(Policy(ALPHA), Policy(BETA, rank=4096))))),
        [BETA],
    ),
    "a policy that failed": (failed, [BETA, FAILURE.message]),
    "a manifest": (
        lambda: with_inputs(planned(training_wave("two", policies=Policies(manifest=SECRET))), UNREAD),
        [SECRET, BETA],
    ),
    "a dataset": (
        lambda: planned(training_wave("two", policies=GIVEN, dataset=Dataset(uri="pvc://elsewhere/lines.jsonl"))),
        ["pvc://elsewhere/lines.jsonl"],
    ),
}
PLAIN: Worlds = {
    "capacity": (lambda: planned(wave("two", [f"team/a-{n}" for n in range(17)])), ["17 device slots"]),
    "waiting": (
        lambda: joined(planned(wave("one", [f"team/a-{n}" for n in range(16)])), wave("two", [BETA], created=LATER)),
        ["1 more device slots", "position 1 of 1"],
    ),
    "replicas": (lambda: planned(wave("two", [ALPHA], replicas=3)), ["on 3 engines"]),
    "no store": (lambda: over(WaveAdapters(names=[ALPHA]), catalog=False), ["adapter store"]),
    "expired": (lambda: planned(wave("two", [ALPHA], ttl="1h")), ["spec.serve.ttl"]),
    "training capacity": (
        lambda: planned(training_wave("two", 17, serve=Serve(residency="Host"))),
        ["17 policies"],
    ),
    "paused": (lambda: planned(training_wave("two", policies=GIVEN, paused=True)), ["spec.train.paused"]),
}


def with_message(world: World) -> list[WaveRecord | WaveTraining]:
    """Return the map's records of the wave `two` that have a message."""
    records: list[WaveRecord | WaveTraining] = [world.recorded["team/two"]]
    records += [world.training.training["team/two"]] if "team/two" in world.training.training else []
    return [each for each in records if each.message]


def shown(of: WaveRecord | WaveTraining, scope: Scope) -> str:
    """Return the record's message as the gateway shows it to a key of this scope."""
    if isinstance(of, WaveTraining):
        return training_within({of.wave: of}, scope)[of.wave].message
    return waves_within({of.wave: of}, scope)[of.wave].message


@pytest.mark.parametrize(("made", "names"), NAMING.values(), ids=NAMING)
def test_a_message_is_read_by_those_alone_who_may_learn_of_all_that_it_names(
    made: Callable[[], World], names: Sequence[str]
) -> None:
    records = with_message(made())
    assert records
    for each in records:
        assert all(name in each.message for name in names), each.message
        for name in NAMES:
            others = Scope(tuple(other for other in NAMES if other != name))
            assert name not in shown(each, others), f"{name} is not opened"
        assert "://" not in shown(each, Scope(NAMES)), "where an adapter lies is told to none of some names"
        if not any("://" in name for name in names):
            assert shown(each, Scope(NAMES, frozenset({"team"}))) == each.message
        assert shown(each, Scope(namespaces=frozenset({"team"}))) == each.message
        assert THEIRS not in each.message


@pytest.mark.parametrize(("made", "words"), PLAIN.values(), ids=PLAIN)
def test_a_message_that_names_nothing_is_read_by_all(made: Callable[[], World], words: Sequence[str]) -> None:
    records = with_message(made())
    assert records
    for each in records:
        assert all(word in each.message for word in words), each.message
        assert shown(each, Scope((), frozenset({"team"}))) == each.message


def test_what_a_wave_that_cannot_be_read_was_refused_for_is_shown_to_none_of_some_names() -> None:
    world = planned(unread(wave("two")))
    (record,) = with_message(world)
    assert shown(record, Scope(NAMES)) != record.message


def test_watchers_are_told_why_a_wave_that_has_begun_does_not_train() -> None:
    world = World(base(2, 2, slots=2), [training_wave("w", 4)], engines(2))
    world.step()
    told = []
    for stage, views in (
        (Stage.LOADING, engines(2)),
        (Stage.RUNNING, engines(2)),
        (Stage.RUNNING, [engines(2)[0], dead(engines(2)[1])]),
        (Stage.RUNNING, [dead(view) for view in engines(2)]),
    ):
        world.engines = views
        world.hear(stage)
        assert world.status("w").phase == "Training"
        told.append(world.training.training["team/w"].message)
    assert told == [
        "4 of 4 policies are not training yet",
        "",
        "",
        "4 of 4 policies are not training yet; away: smol-0, smol-1",
    ]
