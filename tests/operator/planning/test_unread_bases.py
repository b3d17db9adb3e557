"""Waves over an unreadable or deleted base: nothing changes, except what goes away with a deleted object."""

import msgspec

from mint_contracts.records import MapState
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import Child
from tests.operator.training_worlds import named, training_wave
from tests.operator.unread_worlds import Settled, condition, lessons
from tests.operator.worlds import DEFECT, KEY, base, snapshot, unread, wave


def test_where_its_base_cannot_be_read_either_nothing_changes_and_it_says_so_itself() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    readable, world.waves = world.base, [unread(world.waves[0])]
    world.base = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    found = world.plan()
    assert (found.changes, found.training, found.manifests) == ({}, {}, ())
    assert DEFECT in condition(found, "one")[2]
    world.base = readable
    assert world.plan().changes == {}, "the base that can be read again changes nothing of it"


def test_an_unreadable_base_without_engines_is_reported_and_hinders_no_other() -> None:
    idle = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    child = Child("StatefulSet", "team", "smol", replicas=0)
    of = msgspec.structs.replace(snapshot(idle, state=MapState(3, None, {}, {})), children={child.key: child})
    found = plan(of)
    assert (found.base_statuses[KEY].phase, found.base_statuses[KEY].engines.desired) == ("Failed", 1)
    assert (found.manifests, found.changes) == ((), {})


def test_deleting_a_wave_over_a_base_that_cannot_be_read_takes_away_what_only_it_had() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"]), wave("two", ["a/1", "b/0"]), wave("three", ["c/0"])])
    before = world.state
    world.base = msgspec.structs.replace(base(2, 2), defect="spec.engine.device: no such device")
    world.waves = [unread(world.waves[0]), world.waves[1]]
    world.plan()
    assert list(world.state.waves) == ["team/one", "team/two"]
    assert world.state.placements == {name: each for name, each in before.placements.items() if name != "c/0"}
    assert "c/0" not in {name for of in world.state.assigned.values() for name in of}
    assert world.plan().changes == {}
    world.waves = [world.waves[1]]
    world.plan()
    assert sorted(world.state.placements) == ["a/1", "b/0"]


def test_deleting_a_wave_over_a_base_that_cannot_be_read_ends_its_training() -> None:
    world = lessons()
    world.waves.append(training_wave("v", 1))
    world.step()
    assert sorted(world.leases) == ["team/v-0", *named("w", [0, 1])]
    world.base = msgspec.structs.replace(world.base, defect="spec.engine.device: no such device")
    del world.waves[0]
    found = world.step()
    assert list(world.leases) == ["team/v-0"]
    assert list(world.training.training) == ["team/v"]
    assert found.training[KEY].del_rewards == tuple(named("w", [0, 1]))
    assert world.step().training == {}


def test_a_wave_made_anew_over_a_base_that_cannot_be_read_ends_the_training_of_the_one_before() -> None:
    world = lessons()
    world.base = msgspec.structs.replace(world.base, defect="spec.engine.device: no such device")
    world.waves = [training_wave("w", 2, run="another")]
    found = world.step()
    assert (world.leases, world.training.training) == ({}, {})
    assert found.training[KEY].del_rewards == tuple(named("w", [0, 1]))


def test_when_its_base_is_deleted_it_goes_with_it_and_says_both() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    world.waves = [unread(world.waves[0])]
    of = snapshot(None, world.waves, world.views(), state=world.state)
    found = plan(of)
    assert found.changes[KEY].del_placements == ("a/0",)
    assert found.changes[KEY].del_waves == ("team/one",)
    message = condition(found, "one")[2]
    assert DEFECT in message
    assert "no BaseModel smol" in message
