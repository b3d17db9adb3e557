"""How training ends and reports progress: completion, failure, what is published and served, what is kept."""

import msgspec
import pytest

from mint_contracts.records import EngineView, Held, Tier
from mint_contracts.resources import Serve
from mint_contracts.training import FailurePolicy
from mint_contracts.training_records import LEASE_TTL_S, Order, Stage, TrainState
from tests.operator.training_worlds import (
    FAILURE,
    STEPS,
    World,
    base,
    condition,
    dead,
    engines,
    loading,
    named,
    planned,
    published,
    restarted,
    training,
    training_wave,
)


def test_published_revisions_stay_with_their_engine_and_are_served_as_asked_once_complete() -> None:
    world = planned(base(2, 2), [training_wave("w", 2, serve=Serve(replicas=2))], engines(2))
    world.hear(Stage.RUNNING, 4, published=published(4))
    home = {engine for engine, _ in world.leases.values()}
    kept = world.placements["team/w-0"]
    assert [(place.engine, place.residency) for place in kept.places] == [(home.pop(), Tier.DISK)]
    assert [place.why for place in kept.places] == ["the engine that trained it"]
    world.complete()
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


def test_a_waves_record_counts_the_slots_that_it_trains_and_those_that_it_serves_in() -> None:
    world = World(base(2, 2), [training_wave("w", 2, serve=Serve(replicas=2))], engines(2))
    found = []
    for stage, of in ((Stage.RUNNING, 2), (Stage.COMPLETE, 1), (Stage.COMPLETE, 2)):
        world.step()
        world.hear(stage, STEPS, *named("w", range(of)), published=published(STEPS))
        found.append(world.recorded["team/w"].slots)
    assert found == [2, 1 + 2, 2 + 2]


def test_a_complete_wave_shows_its_last_counts_while_redis_is_away() -> None:
    world = planned(base(1, 1), [training_wave("w", 2)], engines(1))
    world.complete()
    world.engines = [_holding(view, ["team/w-0", "team/w-1"]) for view in engines(1)]
    world.step()
    before = world.status("w")
    assert (before.summary, before.counts.device) == ("2/2", 2)
    world.redis_ok = False
    world.step()
    assert condition(world, "w", "Ready")[:2] == ("Unknown", "MapUnavailable")
    assert (world.status("w").summary, world.status("w").counts) == (before.summary, before.counts)


def test_a_wave_does_not_say_that_policies_train_on_without_redis() -> None:
    world = planned(base(1, 1), [training_wave("w", 1)], engines(1))
    world.hear(Stage.RUNNING, 1)
    world.redis_ok = False
    world.step()
    status, reason, message = condition(world, "w", "Ready")
    assert (status, reason) == ("Unknown", "MapUnavailable")
    assert f"begin no step after {LEASE_TTL_S:.0f} s, and continue when it is back" in message


@pytest.mark.parametrize("ends", [Stage.COMPLETE, Stage.CANCELLED, Stage.RUNNING])
def test_an_operator_that_starts_while_redis_is_away_leaves_a_waves_status_as_it_is(ends: Stage) -> None:
    world = planned(base(1, 1), [training_wave("w", 2)], engines(1))
    world.change("w", cancelled=ends is Stage.CANCELLED)
    step = STEPS if ends is Stage.COMPLETE else 4
    world.hear(ends, step, published=published(step), reward_recent=0.5, tokens=7)
    before, complete = world.status("w"), condition(world, "w", "Complete")
    world.training, world.redis_ok = TrainState(), False
    world.step()
    found = [condition(world, "w", each)[:2] for each in ("Ready", "Progressing")]
    assert found == [("Unknown", "MapUnavailable")] * 2
    assert condition(world, "w", "Complete") == complete
    assert msgspec.structs.replace(world.status("w"), conditions=before.conditions) == before


@pytest.mark.parametrize("begun", [False, True])
def test_a_wave_that_was_refused_stays_stalled_when_an_operator_starts_while_redis_is_away(begun: bool) -> None:
    world = planned(base(1, 1, store=begun), [training_wave("w", 2)], engines(1))
    world.say(Stage.COMPLETE, STEPS, *named("w", [0]), published=published(STEPS))
    world.base = base(1, 1, store=False)
    world.step()
    stalled, counts = condition(world, "w", "Stalled"), training(world)
    assert (stalled[:2], world.status("w").phase) == (("True", "NoTrainingStore"), "Failed")
    world.training, world.redis_ok = TrainState(), False
    for _ in range(2):
        world.step()
        assert (condition(world, "w", "Stalled"), training(world)) == (stalled, counts)


def _holding(view: EngineView, names: list[str]) -> EngineView:
    held = {name: Held(name, published(STEPS).source, Tier.DEVICE) for name in names}
    return msgspec.structs.replace(view, held=held)


def test_a_complete_wave_stays_complete_and_placed_when_engines_and_operator_start_anew() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.hear(Stage.COMPLETE, STEPS, published=published(STEPS), reward_recent=0.5, tokens=7, step_s=2.0)
    before, known = world.placements, training(world)
    for incarnation in (2, 3):
        world.start_anew(incarnation)
        for _ in range(2):
            world.step()
            assert (world.status("w").phase, world.leases) == ("Complete", {}), "nothing is left to train"
            assert (world.placements, training(world)) == (before, known)
    assert world.step().training == {}


def test_an_adapter_is_served_while_its_policy_is_loaded_by_another_engine() -> None:
    world = planned(base(2, 2), [training_wave("w", 2)], engines(2))
    world.hear(Stage.RUNNING, 4, published=published(4))
    home = world.leases["team/w-0"][0]
    world.engines = [dead(view) if view.engine == home else view for view in world.engines]
    world.away_s = {home: 60.0}
    world.step()
    world.hear(Stage.LOADING)
    assert set(world.placements) == set(named("w", [0, 1]))
    assert training(world).step == 4


def test_a_record_keeps_of_what_has_ended_only_what_it_does_not_say_itself() -> None:
    world = planned(base(slots=8), [training_wave("w", 8)], engines(1))
    failure = msgspec.structs.replace(FAILURE, message="x" * 10_000)
    world.hear(Stage.FAILED, STEPS, step_s=1.0, published=published(STEPS), failure=failure)
    record = world.training.training["team/w"]
    assert len(msgspec.json.encode(record.last_words)) < 8 * 1024
    assert {(each.wave, each.run, each.steps) for each in record.last_words} == {("", "", 0)}


def test_a_failed_policy_does_not_fail_the_wave() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.say(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.say(Stage.RUNNING, 3, "team/w-1")
    world.step()
    assert world.status("w").phase == "Training"
    assert [each.reason for each in world.status("w").failures] == ["NonFiniteWeights"]
    world.hear(Stage.COMPLETE, STEPS, "team/w-1", published=published(STEPS))
    assert world.status("w").phase == "Complete"
    assert condition(world, "w", "Complete")[2] == "1 of 2 policies complete, 1 failed"


def test_a_wave_fails_as_its_failure_policy_says_and_cancels_the_others() -> None:
    world = planned(base(), [training_wave("w", 3, max_failed=0)], engines(1))
    world.say(Stage.RUNNING, 3)
    world.say(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.step()
    assert {world.leases[name][1].order for name in named("w", [1, 2])} == {Order.CANCEL}
    world.hear(Stage.CANCELLED, 4, *named("w", [1, 2]))
    assert world.status("w").phase == "Failed"
    assert ("Stalled", "True") in {(each.type, each.status) for each in world.status("w").conditions}
    assert "the loss is not a number" in condition(world, "w", "Complete")[2]


def test_all_failed_fails_the_wave() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.hear(Stage.FAILED, 3, failure=FAILURE)
    assert world.status("w").phase == "Failed"


def test_a_failed_policy_is_tried_again_once_when_its_wave_asks_for_it() -> None:
    world = planned(base(slots=2), [training_wave("w", 2)], engines(1))
    token = world.leases["team/w-0"][1].lease
    world.say(Stage.COMPLETE, STEPS, "team/w-1", published=published(STEPS))
    world.say(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.step()
    assert world.status("w").phase == "Complete"
    world.change("w", retry=1)
    found = world.step()
    assert found.training["team/smol"].called == ("smol-0",), "who knows the policy hears of it at once"
    assert (world.status("w").phase, world.status("w").failures) == ("Training", [])
    assert (training(world).policies.waiting, training(world).policies.complete) == (1, 1)
    again = world.leases["team/w-0"][1]
    assert again.order is Order.RUN
    assert again.lease > token, "what it comes to is saved and published by names of its own"
    world.step()
    assert world.leases["team/w-0"][1].lease == again.lease, "it is granted once"
    assert world.leases["team/w-1"][1].lease == token, "and to nobody else"
    world.hear(Stage.FAILED, 3, "team/w-0", failure=FAILURE, retry=1)
    assert condition(world, "w", "Complete")[2] == "1 of 2 policies complete, 1 failed", "not again by itself"
    world.start_anew(2)
    world.step()
    assert (world.status("w").phase, world.leases) == ("Complete", {})


def test_policies_that_engines_forgot_are_retried_from_the_record_under_a_new_lease() -> None:
    world = planned(base(), [training_wave("w", 1)], engines(1))
    token = world.leases["team/w-0"][1].lease
    world.hear(Stage.FAILED, 3, failure=FAILURE)
    world.start_anew(2)
    world.step()
    assert (world.status("w").phase, world.leases) == ("Failed", {})
    world.change("w", retry=1)
    world.step()
    assert world.leases["team/w-0"][1].lease > token
    world.hear(Stage.LOADING)
    assert (world.status("w").phase, training(world).step) == ("Training", 3)


def test_a_wave_that_failed_goes_on_with_those_that_it_cancelled_when_it_is_tried_again() -> None:
    world = planned(base(), [training_wave("w", 3, max_failed=0)], engines(1))
    world.hear(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.say(Stage.CANCELLED, 4, *named("w", [1, 2]))
    world.step()
    assert world.status("w").phase == "Failed"
    world.change("w", retry=1)
    world.step()
    assert world.status("w").phase == "Training"
    assert {lease.order for _, lease in world.leases.values()} == {Order.RUN}


@pytest.mark.parametrize("most", [1, None])
@pytest.mark.parametrize("started_anew", [False, True])
def test_a_wave_that_failed_goes_on_with_those_that_it_cancelled_when_more_may_fail(
    most: int | None, *, started_anew: bool
) -> None:
    world = planned(base(), [training_wave("w", 3, max_failed=0)], engines(1))
    token = world.leases["team/w-0"][1].lease
    world.hear(Stage.FAILED, 3, "team/w-0", failure=FAILURE)
    world.say(Stage.CANCELLED, 4, *named("w", [1, 2]))
    world.step()
    if started_anew:
        world.start_anew(2)
    world.change("w", failure_policy=FailurePolicy(max_failed=most))
    for _ in range(2):
        world.step()
        assert (world.status("w").phase, condition(world, "w", "Complete")[0]) == ("Training", "False")
        assert (training(world).policies.failed, training(world).policies.waiting) == (1, 2)
        assert {world.leases[name][1].order for name in named("w", [1, 2])} == {Order.RUN}
    assert {world.leases[name][1].lease > token for name in named("w", [1, 2])} == {True}
    world.hear(Stage.COMPLETE, STEPS, *named("w", [1, 2]), published=published(STEPS))
    assert condition(world, "w", "Complete") == ("True", "TrainingComplete", "2 of 3 policies complete, 1 failed")


def test_a_wave_that_failed_stays_so_while_more_have_failed_than_may() -> None:
    world = planned(base(), [training_wave("w", 4, max_failed=0)], engines(1))
    world.hear(Stage.FAILED, 3, *named("w", [0, 1]), failure=FAILURE)
    world.say(Stage.CANCELLED, 4, *named("w", [2, 3]))
    world.change("w", failure_policy=FailurePolicy(max_failed=1))
    world.step()
    assert world.status("w").phase == "Failed"


@pytest.mark.parametrize("stage", [Stage.FAILED, Stage.CANCELLED])
def test_a_wave_that_was_given_up_says_how_far_it_had_come(stage: Stage) -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.change("w", cancelled=stage is Stage.CANCELLED)
    world.step()
    world.say(stage, 4, "team/w-0")
    world.say(stage, 6, "team/w-1")
    world.step()
    assert training(world).progress == f"4/{STEPS}"


def test_a_wave_that_a_user_cancelled_is_not_retried() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.change("w", cancelled=True)
    world.step()
    world.say(Stage.CANCELLED, 4)
    world.change("w", retry=1)
    world.step()
    assert world.status("w").phase == "Cancelled"


def test_what_was_trained_is_held_on_the_engines_that_the_wave_names() -> None:
    world = planned(base(2, 2), [training_wave("w", 2, serve=Serve(engines=[1]))], engines(2))
    assert {engine for engine, _ in world.leases.values()} == {"smol-0"}
    world.complete()
    assert [[place.engine for place in each.places] for each in world.placements.values()] == [["smol-1"]] * 2


@pytest.mark.parametrize(
    ("count", "serve"),
    [(1, Serve(engines=[2])), (1, Serve(replicas=2, engines=[0])), (5, Serve(engines=[1]))],
)
def test_a_wave_that_could_not_be_held_where_it_says_is_not_trained(count: int, serve: Serve) -> None:
    world = planned(base(2, 2, slots=4), [training_wave("w", count, serve=serve)], engines(2))
    assert world.leases == {}
    status, reason, message = condition(world, "w", "Admitted")
    assert (status, reason) == ("False", "CapacityExceeded")
    assert "spec.serve.engines" in message


def test_status_sums_up_the_policies() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    fields = {"reward_mean": 0.5, "reward_recent": 0.25, "reward_best": 0.75, "tokens": 100, "step_s": 30.0}
    world.say(Stage.RUNNING, 4, "team/w-0", **fields)
    world.say(Stage.RUNNING, 6, "team/w-1", **fields | {"reward_recent": 0.75})
    world.step()
    found = training(world)
    assert (found.step, found.steps, found.progress) == (4, 10, "4/10")
    assert (found.reward.last, found.reward.recent, found.reward.best) == (0.5, 0.5, 0.75)
    assert (found.tokens, found.eta_seconds, found.eta) == (200, 180, "3m00s")
    assert world.status("w").eta == "3m00s"
    assert (found.policies.total, found.policies.running) == (2, 2)
    assert condition(world, "w", "Ready")[0] == "True"


def test_a_wave_trains_again_only_once_the_next_start_of_its_engine_is_ready_and_says_so() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.hear(Stage.RUNNING, 4, tokens=100, step_s=30.0)
    assert (training(world).eta, world.status("w").summary) == ("3m00s", "2/2")

    def shown() -> tuple[str, str, str, int, int, int, str]:
        found = world.status("w")
        of = training(world)
        ready, policies = condition(world, "w", "Ready"), of.policies
        assert [each.ready for each in found.engines] == [policies.running]
        assert (found.phase, of.step, of.tokens) == ("Training", 4, 200)
        return *ready[:2], found.summary, policies.running, policies.waiting, of.tokens, of.eta

    world.engines = [dead(world.engines[0])]
    world.step()
    assert shown() == ("False", "EnginesAway", "0/2", 0, 2, 200, "")
    for _ in range(2):
        world.engines = [loading(engines(1)[0], 2)]
        world.step()
        assert shown() == ("False", "BaseLoading", "0/2", 0, 2, 200, "")
    assert condition(world, "w", "Ready")[2] == "2 of 2 policies are not training yet; not ready: smol-0"
    for _ in range(2):
        world.engines = [restarted(engines(1)[0], 2)]
        world.step()
        assert shown() == ("False", "PoliciesLoading", "0/2", 0, 2, 200, "")
    world.hear(Stage.RUNNING, 4, tokens=100, step_s=30.0)
    assert shown() == ("True", "Training", "2/2", 2, 0, 200, "3m00s")


def test_what_waits_for_a_slot_counts_in_the_time_that_is_left() -> None:
    wave = training_wave("w", 2, admission="Elastic", serve=Serve(residency="Host"))
    world = planned(base(slots=1), [wave], engines(1))
    world.hear(Stage.RUNNING, 4, step_s=30.0)
    assert training(world).eta_seconds == 6 * 30 + 10 * 30
