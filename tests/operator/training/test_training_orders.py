"""Changes that a person makes to a training wave: pause, resume, cancel, more steps."""

from typing import Any

import msgspec
import pytest

from mint_contracts.records import Held, Tier
from mint_contracts.resources import Serve, Tenant
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.elastic import PATIENCE_S, SHRINK_AFTER_S
from mint_operator.planning.engines import AWAY_GRACE_S
from tests.operator import worlds
from tests.operator.training_worlds import (
    STEPS,
    World,
    base,
    condition,
    dead,
    engines,
    named,
    orders,
    planned,
    published,
    replicas,
    training,
    training_wave,
)


def test_pause_frees_the_slots_once_all_is_saved_and_resume_goes_on_under_the_same_lease() -> None:
    world = planned(base(slots=4), [training_wave("w", 3)], engines(1))
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


@pytest.mark.parametrize(("order", "stage"), [("paused", Stage.PAUSED), ("cancelled", Stage.CANCELLED)])
def test_a_wave_says_which_policies_are_still_training_after_it_was_stopped(order: str, stage: Stage) -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.say(Stage.RUNNING, 2)
    world.change("w", **{order: True})
    world.step()
    later = f"policies are still training; each is {order} after its present step"
    assert condition(world, "w", "Ready") == ("True", "Training", f"2 of 2 {later}")
    world.hear(stage, 3, "team/w-0")
    assert condition(world, "w", "Ready")[1:] == ("Training", f"1 of 2 {later}")


def test_cancel_ends_the_wave() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.say(Stage.RUNNING, 2)
    world.change("w", cancelled=True)
    world.step()
    assert orders(world) == {Order.CANCEL}
    world.hear(Stage.CANCELLED, 3, published=published(3))
    assert world.status("w").phase == "Cancelled"
    told = ("False", "TrainingCancelled", "0 of 2 policies complete, 2 cancelled")
    assert condition(world, "w", "Complete") == told
    assert set(world.placements) == set(named("w", [0, 1]))


def test_a_cancelled_wave_counts_policies_by_how_they_ended() -> None:
    world = planned(base(), [training_wave("w", 3)], engines(1))
    world.say(Stage.COMPLETE, STEPS, "team/w-0", published=published(STEPS))
    world.say(Stage.FAILED, 2, "team/w-1")
    world.say(Stage.RUNNING, 2, "team/w-2")
    world.change("w", cancelled=True)
    world.step()
    world.hear(Stage.CANCELLED, 3, "team/w-2", published=published(3))
    assert condition(world, "w", "Complete")[2] == "1 of 3 policies complete, 1 failed, 1 cancelled"


def test_more_steps_make_a_complete_wave_go_on() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.complete()
    assert world.status("w").phase == "Complete"
    world.change("w", steps=STEPS * 2)
    world.step()
    assert world.status("w").phase == "Training"
    assert orders(world) == {Order.RUN}
    assert world.training.training["team/w"].train.steps == STEPS * 2


def test_more_steps_call_the_engine_that_trains_the_wave_and_no_other() -> None:
    world = planned(base(2, 2, slots=2), [training_wave("v", 2), training_wave("w", 2)], engines(2))
    home = world.leases["team/w-0"][0]
    world.say(Stage.RUNNING, 2)
    found = world.step()
    assert found.training["team/smol"].called == (), "a new phase is nothing that engines act upon"
    world.change("w", steps=STEPS * 2)
    found = world.step()
    assert found.training["team/smol"].called == (home,)
    assert not found.training["team/smol"].set_trains


def test_more_steps_make_a_complete_wave_go_on_although_its_engine_has_forgotten_it() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.complete()
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
    world.hear(Stage.RUNNING, STEPS + 1, published=published(STEPS + 1))
    assert world.training.training["team/w"].last_words == ()


def test_a_paused_wave_is_served_and_goes_on_when_engines_and_operator_have_started_anew() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.change("w", paused=True)
    world.hear(Stage.PAUSED, 3, published=published(3))
    world.step()
    token = world.leases["team/w-0"][1].lease
    world.start_anew(2)
    for _ in range(2):
        world.step()
        assert (world.status("w").phase, training(world).step) == ("Paused", 3)
        assert (training(world).policies.paused, training(world).policies.waiting) == (2, 0)
        assert set(world.placements) == set(named("w", [0, 1]))
    world.change("w", paused=False)
    world.step()
    assert {(lease.order, lease.lease > token) for _, lease in world.leases.values()} == {(Order.RUN, True)}


def complete(slots: int = 2, **fields: Any) -> World:
    """Return a world with a complete wave of two policies held in memory, on an engine with `slots` slots."""
    world = planned(base(slots=slots, **fields), [training_wave("w", 2, serve=Serve(residency="Host"))], engines(1))
    world.hear(Stage.COMPLETE, STEPS, published=published(STEPS), saved=STEPS)
    return world


def test_a_complete_policy_is_told_to_run_once_it_has_a_slot_to_go_on_in() -> None:
    world = complete()
    token = world.leases["team/w-0"][1].lease
    assert orders(world) == {Order.PAUSE}, "its engine would go on by itself when more steps are asked for"
    world.change("w", steps=STEPS * 2)
    world.step()
    world.waves.append(training_wave("x", 1, priority=100))
    world.step()
    assert world.status("x").phase == "Queued", "and keeps the slot until its engine has taken it up"
    assert {(lease.order, lease.lease) for _, lease in world.leases.values()} == {(Order.RUN, token)}


@pytest.mark.parametrize("tenants", [[], [Tenant(namespace="team", device_slots=2)]], ids=["slots", "quota"])
def test_a_complete_wave_that_is_asked_for_more_steps_waits_for_its_turn_as_any_other(tenants: list[Tenant]) -> None:
    world = complete(slots=4 if tenants else 2, tenants=tenants)
    world.waves.append(training_wave("other", 2, serve=Serve(residency="Host")))
    world.step()
    world.say(Stage.RUNNING, 1, *named("other", [0, 1]))
    world.change("w", steps=STEPS * 2)
    for _ in range(2):
        world.step()
        assert world.status("w").phase == "Queued"
        assert {world.leases[name][1].order for name in named("w", [0, 1])} == {Order.PAUSE}
        assert set(world.placements) == set(named("w", [0, 1])), "and what was published is served meanwhile"
    world.say(Stage.PAUSED, STEPS, *named("w", [0, 1]), published=published(STEPS), saved=STEPS)
    world.waves.pop()
    world.step()
    assert orders(world) == {Order.RUN}


@pytest.mark.parametrize("started_anew", [False, True])
def test_a_complete_wave_that_is_to_take_more_steps_later_keeps_no_slot_until_then(*, started_anew: bool) -> None:
    world = complete()
    world.change("w", steps=STEPS * 2, paused=True)
    if started_anew:
        world.start_anew(2)
    for _ in range(2):
        world.step()
        assert (world.status("w").phase, training(world).policies.paused) == ("Paused", 2)
    world.waves.append(training_wave("other", 2, serve=Serve(residency="Host")))
    world.step()
    assert {world.leases[name][1].order for name in named("other", [0, 1])} == {Order.RUN}


@pytest.mark.parametrize("at_once", [False, True], ids=["while it waits", "at once"])
@pytest.mark.parametrize("started_anew", [False, True])
def test_a_complete_wave_that_is_cancelled_before_it_takes_more_steps_has_ended(
    *, at_once: bool, started_anew: bool
) -> None:
    world = complete()
    served = world.placements
    world.waves.append(training_wave("other", 2, serve=Serve(residency="Host")))
    world.step()
    if not at_once:
        world.change("w", steps=STEPS * 2)
        world.step()
        assert world.status("w").phase == "Queued"
    world.change("w", steps=STEPS * 2, cancelled=True)
    if started_anew:
        world.start_anew(2)
    for _ in range(2):  # whether or not its engine says a word
        world.step()
        assert (world.status("w").phase, training(world).policies.cancelled) == ("Cancelled", 2)
        assert {name: each.places for name, each in world.placements.items()} == {
            name: each.places for name, each in served.items()
        }


def test_a_wave_that_was_paused_is_over_once_it_is_cancelled_though_its_engine_has_forgotten_it() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.change("w", paused=True)
    world.step()
    world.hear(Stage.PAUSED, 3, published=published(3), saved=3)
    world.start_anew(2)
    world.change("w", cancelled=True)
    world.step()
    assert world.status("w").phase == "Cancelled"
    world.step()
    assert {place.residency for each in world.placements.values() for place in each.places} == {Tier.DEVICE}


def test_a_resumed_elastic_wave_runs_only_policies_that_have_slots() -> None:
    wave = training_wave("w", 2, admission="Elastic", serve=Serve(residency="Host"))
    world = planned(base(slots=2), [wave], engines(1))
    world.change("w", paused=True)
    world.step()
    world.say(Stage.PAUSED, 3, saved=3)
    world.waves.append(training_wave("other", 1))
    world.step()
    world.change("w", paused=False)
    world.step()
    assert [world.leases[name][1].order for name in named("w", [0, 1])] == [Order.RUN, Order.PAUSE]


def test_an_engine_is_not_kept_for_what_paused_policies_have_published() -> None:
    served, policies = dict.fromkeys(("a/0", "a/1"), Tier.DEVICE), named("w", [0, 1])
    world = World(base(1, 2, slots=2), [worlds.wave("s", list(served))], [worlds.engine(0, served)], replicas=1)
    world.step()
    world.waves.append(training_wave("w", 2))
    assert replicas(world.step()) == 2
    world.engines, world.replicas = [*world.engines, worlds.engine(1)], 2
    world.step()
    world.say(Stage.RUNNING, 3, published=published(3))
    world.change("w", paused=True)
    world.step()
    world.say(Stage.PAUSED, 3, published=published(3), saved=3)
    world.known = world.step().known
    homes = worlds.homes(world.placements)
    assert [homes[name] for name in policies] == [["smol-1"], ["smol-1"]], "where they were trained"
    world.now += SHRINK_AFTER_S
    world.known = world.step().known
    held = {name: Held(name, published(3).source, Tier.DISK) for name in policies}
    world.engines[0] = msgspec.structs.replace(world.engines[0], held=world.engines[0].held | held)
    assert replicas(world.step()) == 1
    assert all(found == ["smol-0"] for found in worlds.homes(world.placements).values())


def above_a_lowered_maximum() -> World:
    """Return a wave on each of three engines just when two may be left and all are to leave the third."""
    names = ("v", "w", "x")
    world = planned(base(1, 3), [training_wave(name, 8) for name in names], engines(3), replicas=3)
    world.hear(Stage.RUNNING, 7)
    assert {engine for engine, _ in world.leases.values()} == {"smol-0", "smol-1", "smol-2"}
    world.base = base(1, 2)
    assert replicas(world.step()) == 3
    return world


def test_an_engine_above_a_lowered_maximum_goes_once_the_policies_that_it_trains_are_saved() -> None:
    world = above_a_lowered_maximum()
    saving = sorted(name for name, (engine, _) in world.leases.items() if engine == "smol-2")
    assert {world.leases[name][1].order for name in saving} == {Order.PAUSE}
    world.say(Stage.PAUSED, 8, *saving[1:], saved=8)
    found = world.step()
    assert replicas(found) == 3
    told = next(each for each in found.base_statuses[worlds.KEY].conditions if each.type == "Progressing")
    assert (told.status, told.reason) == ("True", "ScalingDown")
    assert told.message.endswith(f"smol-2 is removed once {saving[0]} is saved")
    world.say(Stage.PAUSED, 8, saving[0], saved=8)
    assert replicas(world.step()) == 2


def test_an_engine_above_a_lowered_maximum_that_is_lost_saves_nothing_and_goes_at_once() -> None:
    world = above_a_lowered_maximum()
    world.engines[2] = dead(world.engines[2])
    world.away_s = {"smol-2": AWAY_GRACE_S + 1}
    assert replicas(world.step()) == 2


def test_an_engine_above_a_lowered_maximum_is_not_waited_for_forever_if_it_saves_nothing() -> None:
    world = above_a_lowered_maximum()
    world.known = world.step().known
    world.now += SHRINK_AFTER_S + PATIENCE_S - 2
    assert replicas(world.step()) == 3
    world.now += 2
    assert replicas(world.step()) == 2
