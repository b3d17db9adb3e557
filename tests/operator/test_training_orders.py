"""What a person asks of training under way: to pause, to resume, to end, to take more steps."""

from mint_contracts.training_records import Order, Stage
from tests.operator import worlds
from tests.operator.training_worlds import (
    STEPS,
    World,
    base,
    condition,
    engines,
    named,
    orders,
    published,
    training,
    training_wave,
)


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
