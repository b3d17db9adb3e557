"""A training wave that cannot be read keeps its leases, slots, names and published revisions."""

import msgspec
import pytest

from mint_contracts.resources import AdapterWaveStatus, Tenant
from mint_contracts.training import Policies, Policy
from mint_contracts.training_records import Stage, TrainState
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import TrainKnown
from tests.operator import training_worlds
from tests.operator.training_worlds import engines, named, planned, published, restarted, training_wave
from tests.operator.unread_worlds import condition, lessons, lose_sight
from tests.operator.worlds import KEY, snapshot, unread, wave


def test_its_leases_and_its_record_stay_as_they_are() -> None:
    world = lessons()
    before, recorded = world.training, dict(world.recorded)
    assert len(world.leases) == 2
    lose_sight(world)
    found = world.step()
    assert (found.training, world.recorded) == ({}, recorded)
    assert condition(found, "w")[:2] == ("Unknown", "InvalidRequest")
    assert (world.status("w").phase, world.status("w").training is not None) == ("Training", True)
    world.hear(Stage.COMPLETE, training_worlds.STEPS)
    assert world.training.trains == before.trains


def test_that_its_policies_have_ended_is_known_also_when_nobody_can_tell_of_it_any_more() -> None:
    world = planned(training_worlds.base(slots=2), [training_wave("w", 2)], engines(1))
    lose_sight(world)
    world.hear(Stage.COMPLETE, training_worlds.STEPS)
    assert [each.stage for each in world.training.training["team/w"].last_words] == [Stage.COMPLETE] * 2
    assert world.step().training == {}
    world.start_anew(2)
    world.waves.append(training_wave("v", 2))
    world.step()
    assert set(named("v", [0, 1])) <= world.leases.keys(), "and their slots are free"


def test_no_lease_of_it_is_granted_to_an_engine_that_has_started_anew() -> None:
    """Only the spec, which cannot be read, says how the engine would have to train."""
    world = lessons()
    before = world.training.trains
    lose_sight(world)
    world.engines = [restarted(view, 2) for view in engines(2)]
    assert world.step().training == {}
    assert world.training.trains == before
    readable = training_wave("w", 2)
    world.waves = [msgspec.structs.replace(readable, status=world.status("w"))]
    world.step()
    assert {lease.incarnation for _, lease in world.leases.values()} == {2}, "until it can be read"


def test_slots_of_its_policies_are_nobody_elses() -> None:
    world = planned(training_worlds.base(slots=4), [training_wave("w", 3)], engines(1))
    world.say(Stage.RUNNING)
    lose_sight(world)
    world.waves += [wave("urgent", ["a/0", "a/1"], priority=9), training_wave("more", 2, priority=9)]
    world.step()
    found = world.step()
    assert set(world.leases) == set(named("w", range(3)))
    assert condition(found, "urgent", "Admitted")[1] == "WaitingForCapacity"


@pytest.mark.parametrize("has_status", [True, False])
def test_nobody_gives_way_to_a_gang_that_would_need_its_slots(*, has_status: bool) -> None:
    """This also holds if its status cannot be read either."""
    of = training_worlds.base(slots=4, tenants=[Tenant("other")])
    world = planned(of, [wave("one", ["a/0", "a/1"]), wave("two", ["b/0"])], engines(1))
    kept = unread(world.waves[0])
    kept = kept if has_status else msgspec.structs.replace(kept, status=AdapterWaveStatus())
    world.waves = [kept, world.waves[1], training_wave("w", 3, priority=9, namespace="other")]
    world.step()
    assert sorted(world.placements) == ["a/0", "a/1", "b/0"]
    assert world.leases == {}


def test_nobody_else_trains_its_policies() -> None:
    world = lessons()
    before = world.training.trains
    lose_sight(world)
    policies = Policies(list=(Policy("team/w-0"), Policy("team/v-0")))
    world.waves.insert(0, training_wave("v", policies=policies, priority=9))
    found = world.step()
    assert condition(found, "v", "Admitted")[1] == "PolicyConflict"
    assert world.training.trains == before


def test_nobody_else_serves_anything_under_the_name_of_a_policy_that_has_published_nothing_yet() -> None:
    world = lessons()
    of_before = "pvc://training/runs/revisions/team/w-1/.published/abc"  # of an earlier policy of the name
    world.waves.insert(0, wave("has-it", sources={"team/w-1": of_before}))
    world.step()
    lose_sight(world)
    world.waves.insert(0, wave("new", sources={"team/w-0": "pvc://samples/elsewhere"}, priority=9))
    found = world.step()
    status, reason, message = condition(found, "new", "Admitted")
    assert (status, reason) == ("False", "PolicyConflict")
    assert "trained by wave team/w" in message
    assert condition(found, "has-it", "Admitted")[0] == "True", "who had it before keeps it, as ever"
    assert list(world.placements) == ["team/w-1"]
    lost = snapshot(world.base, world.waves, world.engines, remembered=world.placements)
    found = plan(msgspec.structs.replace(lost, training={KEY: TrainKnown(TrainState(), world.training)}))
    assert condition(found, "has-it", "Admitted")[0] == "True", "also when the map is lost"


def test_what_it_has_published_stays_served_and_follows_its_policies() -> None:
    world = lessons()
    world.hear(Stage.RUNNING, 4, published=published(4))
    assert sorted(world.placements) == named("w", [0, 1])
    before = world.placements
    lose_sight(world)
    world.step()
    assert world.placements == before
    world.hear(Stage.RUNNING, 5, published=published(5))
    assert {each.source for each in world.placements.values()} == {published(5).source}
    world.start_anew(2)
    for _ in range(2):
        world.step()
    assert sorted(world.placements) == named("w", [0, 1]), "also when nobody can tell of it any more"


def test_deleting_it_ends_its_training() -> None:
    world = lessons()
    lose_sight(world)
    world.waves = []
    world.step()
    assert (world.leases, world.training.training) == ({}, {})


def test_a_wave_made_anew_under_its_name_inherits_no_training() -> None:
    world = lessons()
    world.waves = [unread(training_wave("w", 2, run="another"))]
    found = world.step()
    assert (world.leases, world.training.training) == ({}, {})
    assert found.wave_statuses["team/w"].phase == "Failed"
