"""Plans for waves of many policies: what they cost grows with the number of policies, and not with its square."""

import sys
from types import FrameType
from typing import Any

import msgspec

from mint_contracts.resources import Serve
from mint_contracts.training_records import Stage, TrainAssignment
from tests.operator.training_worlds import World, base, engines, published, training_wave


def calls(policies: int) -> int:
    """Return how many of the operator's functions a plan calls for new reports on a wave of so many policies."""
    wave = training_wave("w", policies, admission="Elastic", serve=Serve(residency="Host"))
    world, made = World(base(4, 4, 256), [wave], engines(4), replicas=4), 0
    for step in (1, 2):
        world.known = world.step().known
        world.say(Stage.RUNNING, step, published=published(step))
    assert len(world.leases) == policies

    def counted(frame: FrameType, event: str, _: object) -> None:
        nonlocal made
        made += event == "call" and "mint_operator" in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        world.plan()
    finally:
        sys.setprofile(before)
    return made


def test_a_plan_for_four_times_as_many_policies_takes_about_four_times_as_long() -> None:
    assert calls(1024) < 5 * calls(256)


class Leases(dict[str, TrainAssignment]):
    """One engine's leases, which count how often a policy's is looked for among those of any engine."""

    looked = 0

    def get(self, key: str, default: Any = None) -> Any:
        Leases.looked += 1
        return super().get(key, default)


def test_a_policy_is_not_looked_for_among_the_leases_of_every_engine() -> None:
    policies, count = 64, 16
    wave = training_wave("w", policies, admission="Elastic", serve=Serve(residency="Host"))
    world = World(base(count, count, policies // count), [wave], engines(count), replicas=count)
    world.step()
    trains = {engine: Leases(of) for engine, of in world.training.trains.items()}
    assert len(trains) == count
    world.training = msgspec.structs.replace(world.training, trains=trains)
    world.plan()
    assert Leases.looked <= 2 * policies
