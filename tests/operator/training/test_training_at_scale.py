"""Plans for waves of many policies: what they cost grows with the number of policies, and not with its square."""

from typing import Any

import msgspec

from mint_contracts.records import PolicyRoom
from mint_contracts.resources import Serve
from mint_contracts.training_records import Stage, TrainAssignment
from tests.operator.calls import calls
from tests.operator.training_worlds import World, base, engines, published, training_wave

FOR_TWO = PolicyRoom(500, {"q_proj": 10}, own=2, copies=1)


def world_of(policies: int, count: int, room: PolicyRoom | None = None) -> World:
    """Return a world in which a wave's policies train on so many engines, of which each has this room."""
    views = [
        msgspec.structs.replace(view, record=msgspec.structs.replace(view.record, policy_room=room))
        for view in engines(count)
        if view.record is not None
    ]
    wave = training_wave("w", policies, admission="Elastic", serve=Serve(residency="Host"))
    world = World(base(count, count, 256), [wave], views, replicas=count)
    for step in (1, 2):
        world.known = world.step().known
        world.say(Stage.RUNNING, step, published=published(step))
    return world


def test_a_plan_for_four_times_as_many_policies_takes_about_four_times_as_long() -> None:
    worlds = [world_of(policies, 4) for policies in (256, 1024)]
    assert [len(world.leases) for world in worlds] == [256, 1024]
    few, many = (calls(world.plan) for world in worlds)
    assert many < 5 * few


def test_a_plan_does_not_try_every_engine_for_each_policy_that_waits_for_memory() -> None:
    worlds = [world_of(512, count, FOR_TWO) for count in (2, 32)]
    assert [len(world.leases) for world in worlds] == [4, 64]
    few, many = (calls(world.plan) for world in worlds)
    assert many < 3 * few, "of which most are for those that train"


class Leases(dict[str, TrainAssignment]):
    """One engine's leases, which count how often a policy's is looked for among those of any engine."""

    looked = 0

    def get(self, key: str, default: Any = None) -> Any:
        Leases.looked += 1
        return super().get(key, default)


def test_a_policy_is_not_looked_for_among_the_leases_of_every_engine() -> None:
    world = world_of(64, 16, FOR_TWO)
    trains = {engine: Leases(of) for engine, of in world.training.trains.items()}
    assert len(trains) == 16
    world.training = msgspec.structs.replace(world.training, trains=trains)
    world.plan()
    assert Leases.looked <= 2 * 64
