"""What a plan makes of waves that train: slots, leases, orders, placements of what was published, and statuses."""

from typing import Any

import msgspec
import pytest

from mint_contracts.records import EngineView, Failure, Held, Tier
from mint_contracts.resources import Serve, TrainingStatus
from mint_contracts.training import ConfigMapKey, Dataset, Policies, Policy, PolicyTemplate
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import Inputs, ObservedBase
from tests.operator import worlds
from tests.operator.training_worlds import (
    STEPS,
    World,
    base,
    dead,
    engines,
    named,
    published,
    restarted,
    training_wave,
)


def condition(world: World, wave: str, kind: str) -> tuple[str, str, str]:
    found = next(each for each in world.status(wave).conditions if each.type == kind)
    return found.status, found.reason, found.message


def training(world: World) -> TrainingStatus:
    found = world.status("w").training
    assert found is not None
    return found


def orders(world: World) -> set[Order]:
    return {lease.order for _, lease in world.leases.values()}


def test_a_wave_trains_together_on_one_engine_and_its_policies_are_complete() -> None:
    template = PolicyTemplate(name_prefix="acme/x", rank=4, seed=7)
    world = World(base(2, 2), [training_wave("w", policies=Policies(template=template, count=3))], engines(2))
    world.step()
    assert list(world.leases) == [f"team/acme/x-{index}" for index in range(3)]
    assert len({engine for engine, _ in world.leases.values()}) == 1
    settings = [lease.settings for _, lease in world.leases.values()]
    assert [(each.rank, each.alpha, each.seed) for each in settings] == [(4, 16.0, 7), (4, 16.0, 8), (4, 16.0, 9)]
    record = world.training.training["team/w"]
    assert record.store.uri == "pvc://training/runs"
    assert record.train.policies == Policies()
    assert record.policies == tuple(world.leases)
    assert world.placements == {}


def test_a_wave_that_no_engine_can_take_alone_spreads() -> None:
    world = World(base(2, 2, slots=3), [training_wave("w", 5)], engines(2))
    world.step()
    assert len(world.leases) == 5
    assert {engine for engine, _ in world.leases.values()} == {"smol-0", "smol-1"}


def test_a_gang_has_slots_for_all_or_none() -> None:
    serving = worlds.wave("s", ["a", "b"])
    world = World(base(slots=4), [serving, training_wave("w", 3)], engines(1))
    world.step()
    assert world.leases == {}
    assert world.status("w").phase == "Queued"
    assert condition(world, "w", "Admitted")[:2] == ("False", "WaitingForCapacity")
    world.waves = [msgspec.structs.replace(serving, spec=worlds.wave("s", ["a"]).spec), world.waves[1]]
    world.step()
    world.step()
    assert len(world.leases) == 3


def test_an_elastic_wave_takes_what_is_free_and_the_rest_follows() -> None:
    world = World(
        base(slots=4),
        [worlds.wave("s", ["a", "b"]), training_wave("w", 3, admission="Elastic", serve=Serve(residency="Host"))],
        engines(1),
    )
    world.step()
    world.step()
    assert list(world.leases) == named("w", [0, 1])
    world.say(Stage.COMPLETE, STEPS, "team/w-0", published=published(STEPS))
    world.step()
    assert set(world.leases) == set(named("w", [0, 1, 2]))
    assert training(world).policies.complete == 1


def test_a_wave_that_waits_for_memory_keeps_no_slot_from_one_that_trains() -> None:
    waves = [worlds.wave(f"host-{name}", [name], residency="Host") for name in "ab"]
    world = World(base(slots=8), waves, engines(1), sizes=dict.fromkeys("ab", Size(8, 700 << 10)))
    world.step()
    assert condition(world, "host-b", "Admitted")[1] == "WaitingForCapacity"
    world.waves.append(training_wave("w", 2, created="2026-01-02T00:00:00Z"))
    world.step()
    assert len(world.leases) == 2


def test_what_trains_keeps_its_slots_from_a_wave_of_higher_priority() -> None:
    world = World(base(slots=4), [training_wave("w", 3)], engines(1))
    world.step()
    before = world.leases
    world.waves.append(worlds.wave("s", ["a", "b", "c"], priority=100))
    world.step()
    assert world.leases == before
    assert world.status("s").phase == "Pending"


def test_leases_stay_while_nothing_changes_and_grow_with_each_start_of_the_engine() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    first = world.leases
    world.step()
    assert world.leases == first
    world.engines = [dead(world.engines[0])]
    world.step()
    assert world.leases == first
    world.engines = [restarted(engines(1)[0], 2)]
    world.step()
    for name, (engine, lease) in world.leases.items():
        assert engine == "smol-0"
        assert lease.incarnation == 2
        assert lease.lease > first[name][1].lease


def test_policies_move_from_an_engine_that_stays_away() -> None:
    world = World(base(2, 2), [training_wave("w", 2)], engines(2))
    world.step()
    home = {engine for engine, _ in world.leases.values()}.pop()
    before = world.leases
    ordinal = int(home[-1])
    world.engines[ordinal] = dead(world.engines[ordinal])
    world.away_s = {home: 5.0}
    world.step()
    assert world.leases == before
    world.away_s = {home: 60.0}
    world.step()
    assert {engine for engine, _ in world.leases.values()} == {f"smol-{1 - ordinal}"}
    assert all(lease.lease > before[name][1].lease for name, (_, lease) in world.leases.items())


def test_pause_frees_the_slots_once_all_is_saved_and_resume_goes_on_under_the_same_lease() -> None:
    world = World(base(slots=4), [training_wave("w", 3)], engines(1))
    world.step()
    before = world.leases
    world.say(Stage.RUNNING, 2)
    world.change("w", paused=True)
    world.step()
    assert orders(world) == {Order.PAUSE}
    assert world.status("w").phase == "Training"
    world.say(Stage.PAUSED, 3)
    world.waves.append(worlds.wave("s", ["a", "b", "c"]))
    world.step()
    assert world.status("w").phase == "Paused"
    assert len(world.placements) == 3
    world.change("w", paused=False)
    world.step()
    assert world.status("w").phase == "Queued"
    assert orders(world) == {Order.PAUSE}
    world.waves.pop()
    world.step()
    assert orders(world) == {Order.RUN}
    assert {name: lease.lease for name, (_, lease) in world.leases.items()} == {
        name: lease.lease for name, (_, lease) in before.items()
    }


def test_cancel_ends_the_wave() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.RUNNING, 2)
    world.change("w", cancelled=True)
    world.step()
    assert orders(world) == {Order.CANCEL}
    world.say(Stage.CANCELLED, 3, published=published(3))
    world.step()
    assert world.status("w").phase == "Cancelled"
    assert condition(world, "w", "Complete")[:2] == ("False", "TrainingCancelled")
    assert set(world.placements) == set(named("w", [0, 1]))


def test_published_revisions_stay_with_their_engine_and_are_served_as_asked_once_complete() -> None:
    world = World(base(2, 2), [training_wave("w", 2, serve=Serve(replicas=2))], engines(2))
    world.step()
    world.say(Stage.RUNNING, 4, published=published(4))
    world.step()
    home = {engine for engine, _ in world.leases.values()}
    kept = world.placements["team/w-0"]
    assert [(place.engine, place.residency) for place in kept.places] == [(home.pop(), Tier.DISK)]
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS))
    world.step()
    served = world.placements["team/w-0"]
    assert served.source == published(STEPS).source
    assert sorted((place.engine, place.residency) for place in served.places) == [
        ("smol-0", Tier.DEVICE),
        ("smol-1", Tier.DEVICE),
    ]
    assert world.status("w").phase == "Complete"
    assert condition(world, "w", "Complete")[0] == "True"
    assert condition(world, "w", "Ready")[:2] == ("False", "AdaptersLoading")
    world.engines = [_holding(view, ["team/w-0", "team/w-1"]) for view in engines(2)]
    world.step()
    assert condition(world, "w", "Ready")[0] == "True"


def _holding(view: EngineView, names: list[str]) -> EngineView:
    held = {name: Held(name, published(STEPS).source, Tier.DEVICE) for name in names}
    return msgspec.structs.replace(view, held=held)


def test_more_steps_make_a_complete_wave_go_on() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS))
    world.step()
    assert world.status("w").phase == "Complete"
    world.change("w", steps=STEPS * 2)
    world.step()
    assert world.status("w").phase == "Training"
    assert orders(world) == {Order.RUN}
    assert world.training.training["team/w"].train.steps == STEPS * 2


def test_more_steps_call_the_engine_that_trains_the_wave_and_no_other() -> None:
    world = World(base(2, 2, slots=2), [training_wave("v", 2), training_wave("w", 2)], engines(2))
    world.step()
    home = world.leases["team/w-0"][0]
    world.say(Stage.RUNNING, 2)
    found = world.step()
    assert found.training["team/smol"].called == (), "a new phase is nothing that engines act upon"
    world.change("w", steps=STEPS * 2)
    found = world.step()
    assert found.training["team/smol"].called == (home,)
    assert not found.training["team/smol"].set_trains


def test_a_complete_wave_stays_complete_and_placed_when_engines_and_operator_start_anew() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS), reward_recent=0.5, tokens=7, step_s=2.0)
    world.step()
    before, known = world.placements, training(world)
    for incarnation in (2, 3):
        world.start_anew(incarnation)
        for _ in range(2):
            world.step()
            assert (world.status("w").phase, world.leases) == ("Complete", {}), "nothing is left to train"
            assert (world.placements, training(world)) == (before, known)
    assert world.step().training == {}


@pytest.mark.parametrize("stage", [Stage.FAILED, Stage.CANCELLED])
def test_what_was_given_up_is_not_trained_again_by_an_engine_that_starts_anew(stage: Stage) -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(stage, 3, "team/w-0", failure=FAILURE if stage is Stage.FAILED else None)
    world.say(Stage.RUNNING, 3, "team/w-1")
    world.step()
    remembered = world.training.progress
    world.engines = [restarted(world.engines[0], 2)]
    for progress in (remembered, {}):
        world.training = msgspec.structs.replace(world.training, progress=progress)
        world.step()
        world.step()
        assert list(world.leases) == ["team/w-1"]
    if stage is Stage.FAILED:
        assert [each.reason for each in world.status("w").failures] == ["NonFiniteWeights"]


def test_more_steps_make_a_complete_wave_go_on_although_its_engine_has_forgotten_it() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS))
    world.step()
    token = world.leases["team/w-0"][1].lease
    world.start_anew(2)
    world.step()
    world.change("w", steps=STEPS * 2)
    world.step()
    world.say(Stage.LOADING)  # an engine knows nothing of a policy before it is loaded
    world.step()
    assert {lease.lease > token for _, lease in world.leases.values()} == {True}
    assert (world.status("w").phase, training(world).step) == ("Training", STEPS)
    assert set(world.placements) == set(named("w", [0, 1])), "and what was published is served meanwhile"
    world.say(Stage.RUNNING, STEPS + 1, published=published(STEPS + 1))
    world.step()
    assert world.training.training["team/w"].last_words == ()


def test_a_paused_wave_is_served_and_goes_on_when_engines_and_operator_have_started_anew() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.change("w", paused=True)
    world.say(Stage.PAUSED, 3, published=published(3))
    world.step()
    world.step()
    token = world.leases["team/w-0"][1].lease
    world.start_anew(2)
    world.step()
    assert (world.status("w").phase, training(world).step) == ("Paused", 3)
    assert set(world.placements) == set(named("w", [0, 1]))
    world.change("w", paused=False)
    world.step()
    assert {(lease.order, lease.lease > token) for _, lease in world.leases.values()} == {(Order.RUN, True)}


def test_an_adapter_is_served_while_its_policy_is_loaded_by_another_engine() -> None:
    world = World(base(2, 2), [training_wave("w", 2)], engines(2))
    world.step()
    world.say(Stage.RUNNING, 4, published=published(4))
    world.step()
    home = world.leases["team/w-0"][0]
    world.engines = [dead(view) if view.engine == home else view for view in world.engines]
    world.away_s = {home: 60.0}
    world.step()
    world.say(Stage.LOADING)
    world.step()
    assert set(world.placements) == set(named("w", [0, 1]))
    assert training(world).step == 4


def test_a_record_keeps_of_what_has_ended_only_what_it_does_not_say_itself() -> None:
    world = World(base(slots=8), [training_wave("w", 8)], engines(1))
    world.step()
    failure = msgspec.structs.replace(FAILURE, message="x" * 10_000)
    world.say(Stage.FAILED, STEPS, step_s=1.0, published=published(STEPS), failure=failure)
    world.step()
    record = world.training.training["team/w"]
    assert len(msgspec.json.encode(record.last_words)) < 8 * 1024
    assert {(each.wave, each.run, each.steps) for each in record.last_words} == {("", "", 0)}


FAILURE = Failure("NonFiniteWeights", "the loss is not a number", terminal=True)


def test_a_failed_policy_does_not_fail_the_wave() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.say(Stage.RUNNING, 3, "team/w-1")
    world.step()
    assert world.status("w").phase == "Training"
    assert [each.reason for each in world.status("w").failures] == ["NonFiniteWeights"]
    world.say(Stage.COMPLETE, STEPS, "team/w-1", published=published(STEPS))
    world.step()
    assert world.status("w").phase == "Complete"
    assert condition(world, "w", "Complete")[2] == "1 of 2 policies complete, 1 failed"


def test_a_wave_fails_as_its_failure_policy_says_and_cancels_the_others() -> None:
    world = World(base(), [training_wave("w", 3, max_failed=0)], engines(1))
    world.step()
    world.say(Stage.RUNNING, 3)
    world.say(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.step()
    assert {world.leases[name][1].order for name in named("w", [1, 2])} == {Order.CANCEL}
    world.say(Stage.CANCELLED, 4, *named("w", [1, 2]))
    world.step()
    assert world.status("w").phase == "Failed"
    assert "the loss is not a number" in condition(world, "w", "Complete")[2]


def test_all_failed_fails_the_wave() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.FAILED, 3, failure=FAILURE)
    world.step()
    assert world.status("w").phase == "Failed"


def test_status_sums_up_the_policies() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    said = {"reward_mean": 0.5, "reward_recent": 0.25, "reward_best": 0.75, "tokens": 100, "step_s": 30.0}
    world.say(Stage.RUNNING, 4, "team/w-0", **said)
    world.say(Stage.RUNNING, 6, "team/w-1", **said | {"reward_recent": 0.75})
    world.step()
    found = training(world)
    assert (found.step, found.steps, found.progress) == (4, 10, "4/10")
    assert (found.reward.last, found.reward.recent, found.reward.best) == (0.5, 0.5, 0.75)
    assert (found.tokens, found.eta_seconds, found.eta) == (200, 180, "3m00s")
    assert (found.policies.total, found.policies.running) == (2, 2)
    assert condition(world, "w", "Ready")[0] == "True"


def test_what_waits_for_a_slot_counts_in_the_time_that_is_left() -> None:
    wave = training_wave("w", 2, admission="Elastic", serve=Serve(residency="Host"))
    world = World(base(slots=1), [wave], engines(1))
    world.step()
    world.say(Stage.RUNNING, 4, step_s=30.0)
    world.step()
    assert training(world).eta_seconds == 6 * 30 + 10 * 30


def test_a_wave_deleted_leaves_nothing_and_one_made_anew_starts_anew() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS))
    world.step()
    world.waves = [training_wave("w", 2, run="another")]
    found = world.step()
    assert found.training["team/smol"].del_rewards == tuple(named("w", [0, 1]))
    assert {lease.run for _, lease in world.leases.values()} == {"another"}
    assert training(world).step == 0
    world.waves = []
    world.step()
    assert world.leases == {}
    assert world.training.training == {}
    assert world.placements == {}


def test_leases_are_rebuilt_from_what_engines_say_when_the_map_was_lost() -> None:
    world = World(base(), [training_wave("w", 2)], engines(1))
    world.step()
    before = world.leases
    world.say(Stage.RUNNING, 3)
    world.training = msgspec.structs.replace(world.training, training={}, trains={})
    world.version = None
    world.step()
    assert world.leases == before


@pytest.mark.parametrize("unread", [{}, {"s3://b/p.jsonl": Failure("SourceNotFound", "it is gone", terminal=True)}])
def test_a_wave_goes_on_as_it_was_while_its_manifest_can_not_be_read(unread: dict[str, Failure]) -> None:
    read = {"s3://b/p.jsonl": (Policy(name="team/a"), Policy(name="team/b", rank=4), Policy(name="team/c"))}
    fields: dict[str, Any] = {"policies": Policies(manifest="s3://b/p.jsonl"), "admission": "Elastic"}
    wave = training_wave("w", serve=Serve(residency="Host"), **fields)
    world = World(base(slots=2), [wave], engines(1), inputs=Inputs(manifests=read))
    world.step()
    world.say(Stage.RUNNING, 3, published=published(3))
    world.step()
    before, placed = world.leases, world.placements
    assert list(before) == ["team/a", "team/b"]
    world.inputs = Inputs(manifests=unread)
    assert world.step().training == {}, "no history of rewards is forgotten, either"
    assert (world.status("w").phase, world.leases, world.placements) == ("Training", before, placed)
    world.say(Stage.COMPLETE, STEPS, "team/a", published=published(STEPS))
    world.step()
    world.start_anew(2)
    world.step()
    assert list(world.leases) == ["team/b"], "nobody knows by what settings c is to be trained"
    assert world.leases["team/b"][1].settings == before["team/b"][1].settings
    world.inputs = Inputs(manifests=read)
    world.step()
    assert list(world.leases) == ["team/b", "team/c"]


def test_a_wave_that_has_not_begun_waits_for_its_manifest() -> None:
    world = World(base(), [training_wave("w", policies=Policies(manifest="s3://b/p.jsonl"))], engines(1))
    world.step()
    assert (world.status("w").phase, world.leases) == ("Queued", {})
    assert condition(world, "w", "Admitted")[1] == "ManifestUnread"


def test_two_waves_can_not_train_one_policy() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    world = World(base(), [training_wave("a", policies=given), training_wave("b", policies=given)], engines(1))
    world.step()
    assert world.leases["team/x"][1].wave == "team/a"
    assert condition(world, "b", "Admitted")[1] == "PolicyConflict"
    world.waves.pop(0)
    world.step()
    assert world.leases["team/x"][1].wave == "team/b"


def test_a_policy_named_like_an_adapter_that_another_wave_serves_is_not_trained() -> None:
    given = Policies(list=(Policy(name="team/x", start_from="team/y"),))
    world = World(base(), [worlds.wave("s", ["team/x", "team/y"]), training_wave("w", policies=given)], engines(1))
    for _ in range(2):
        world.step()
        assert world.leases == {}
        assert condition(world, "w", "Admitted")[1:] == (
            "PolicyConflict",
            "policy team/x is named like an adapter that wave team/s serves from pvc://samples/adapters/team/x; "
            "name it otherwise, or delete that wave",
        )
    world.waves[0] = worlds.wave("s", ["team/y"])
    world.step()
    world.step()
    assert list(world.leases) == ["team/x"], "what it starts from may be served by anybody"


def test_a_policy_may_be_served_as_it_was_published_before() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    before = {"team/x": "pvc://training/runs/revisions/team/x/.published/abc"}
    world = World(base(), [worlds.wave("s", sources=before), training_wave("w", policies=given)], engines(1))
    world.step()
    world.step()
    assert list(world.leases) == ["team/x"]


def test_what_trains_goes_on_when_another_wave_comes_to_serve_its_name() -> None:
    world = World(base(), [training_wave("w", 1)], engines(1))
    world.step()
    world.say(Stage.RUNNING, 1, published=published(1))
    world.step()
    world.waves.append(worlds.wave("z", ["team/w-0"]))
    world.step()
    assert orders(world) == {Order.RUN}
    assert condition(world, "z", "Admitted")[1] == "SourceConflict"


def test_a_complete_wave_keeps_its_names_from_a_later_one_of_higher_priority() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    world = World(base(), [training_wave("w", policies=given)], engines(1))
    world.step()
    world.say(Stage.COMPLETE, STEPS, published=published(STEPS))
    world.step()
    world.waves.append(training_wave("v", policies=given, priority=9))
    world.step()
    assert world.status("w").phase == "Complete"
    assert list(world.placements) == ["team/x"]
    assert condition(world, "v", "Admitted")[1] == "PolicyConflict"


@pytest.mark.parametrize(
    ("of", "fields", "why"),
    [
        (base(store=False), {}, "NoTrainingStore"),
        (base(), {"policies": Policies(template=PolicyTemplate(rank=64), count=1)}, "RankTooLarge"),
        (base(), {"policies": Policies(list=(Policy(name="../x"),))}, "InvalidRequest"),
        (base(), {"dataset": Dataset(uri="pvc://elsewhere/x.jsonl")}, "SourceForbidden"),
        (base(), {"dataset": Dataset(config_map=ConfigMapKey("lessons"))}, "SourceNotFound"),
        (base(slots=3), {"count": 4}, "CapacityExceeded"),
        (base(slots=3), {"count": 2, "serve": Serve(replicas=2)}, "CapacityExceeded"),
    ],
)
def test_what_can_never_train_says_so_at_once(of: ObservedBase, fields: dict[str, Any], why: str) -> None:
    world = World(of, [training_wave("w", **fields)], engines(1))
    world.step()
    assert world.status("w").phase == "Failed"
    assert condition(world, "w", "Complete")[:2] == ("False", why)
    assert world.leases == {}


def test_config_maps_come_to_the_engines_as_lines() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    marks = "".join(chr(each) for each in (0x85, 0x2028, 0x2029, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E))
    texts = {"team": {"lessons": {"data.jsonl": f'{{"prompt": "a"}}\n\n{{"prompt": "b{marks}"}}\r\n'}}}
    world = World(base(), [wave], engines(1), inputs=Inputs(config_maps=texts))
    world.step()
    dataset = world.training.training["team/w"].train.dataset
    assert dataset == Dataset(lines=['{"prompt": "a"}', "", f'{{"prompt": "b{marks}"}}']), "as a file's lines"
    assert {lease.settings.dataset for _, lease in world.leases.values()} == {None}


def test_a_config_map_that_cannot_be_read_now_fails_nobody() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    unread = Failure("SourceUnavailable", "could not be read (etcd is away); trying again", terminal=False)
    world = World(base(), [wave], engines(1), inputs=Inputs(config_maps={"team": {"lessons": unread}}))
    world.step()
    assert world.status("w").phase == "Queued"
    assert condition(world, "w", "Complete")[1] == "SourceUnavailable"
    world.inputs = Inputs(config_maps={"team": {"lessons": {"data.jsonl": '{"prompt": "a"}'}}})
    world.step()
    assert world.leases
    world.inputs = Inputs(config_maps={"team": {"lessons": unread}})
    before = world.training.training["team/w"]
    world.step()
    assert world.training.training["team/w"] == before


def test_a_wave_that_has_begun_needs_its_config_map_no_more() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    texts = {"team": {"lessons": {"data.jsonl": '{"prompt": "a"}'}}}
    world = World(base(), [wave], engines(1), inputs=Inputs(config_maps=texts))
    world.step()
    before, leases = world.training.training["team/w"].train.dataset, world.leases
    world.inputs = Inputs(config_maps={})
    world.step()
    assert world.training.training["team/w"].train.dataset == before
    assert world.leases == leases


@pytest.mark.parametrize("texts", [{}, {"team": {"own": {"data.jsonl": "\n"}}}], ids=["deleted", "blank"])
@pytest.mark.parametrize("stage", [None, Stage.COMPLETE])
def test_a_policy_that_has_begun_needs_its_own_config_map_no_more(texts: Any, stage: Stage | None) -> None:
    own = Policies(list=(Policy(name="acme/a", dataset=Dataset(config_map=ConfigMapKey("own"))),))
    given = {"team": {"own": {"data.jsonl": '{"prompt": "a"}'}}}
    world = World(base(), [training_wave("w", policies=own)], engines(1), inputs=Inputs(config_maps=given))
    world.step()
    if stage is not None:
        world.say(stage, STEPS, published=published(STEPS))
        world.step()
        world.step()
    before = world.leases, dict(world.placements), world.status("w").phase
    world.inputs = Inputs(config_maps=texts)
    world.step()
    world.step()
    assert (world.leases, dict(world.placements), world.status("w").phase) == before
    assert world.leases or world.placements
