"""A wave whose spec cannot be read, as after a rollback, keeps what it has, and nobody takes it away."""

from collections.abc import Sequence
from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import EngineView, MapState, Tier
from mint_contracts.resources import AdapterWaveStatus, Tenant
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import PartAssignment, PartTraining, Stage, TrainState
from mint_operator.planning.elastic import SHRINK_AFTER_S
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import Inputs, ObservedBase, ObservedWave, Snapshot, TrainKnown
from tests.operator import training_worlds
from tests.operator.test_elastic import Cluster, newest, rolled
from tests.operator.test_planner_properties import bases, some_waves
from tests.operator.test_planner_replan import written
from tests.operator.training_worlds import World, engines, named, published, restarted, training_wave
from tests.operator.worlds import DEFECT, KEY, base, engine, snapshot, source, unread, wave


def condition(of: Plan, name: str, kind: str = "Ready") -> tuple[str, str, str]:
    conditions = of.wave_statuses[f"team/{name}"].conditions
    found = next(each for each in conditions if each.type == kind)
    return found.status, found.reason, found.message


class Settled:
    """A base and waves, planned for until nothing changes, and what the map says then."""

    def __init__(self, of: ObservedBase, waves: Sequence[ObservedWave]) -> None:
        self.base, self.waves, self.state = of, list(waves), MapState(1, None, {}, {})
        self.plan()
        self.plan()

    def views(self) -> list[EngineView]:
        held: dict[str, dict[str, Tier]] = {}
        for name, each in self.state.placements.items():
            for place in each.places:
                held.setdefault(place.engine, {})[name] = place.residency
        count = self.base.spec.engine.replicas.max
        return [engine(ordinal, held.get(f"smol-{ordinal}")) for ordinal in range(count)]

    def seen(self) -> Snapshot:
        return snapshot(self.base, self.waves, self.views(), state=self.state)

    def plan(self) -> Plan:
        found = plan(self.seen())
        if KEY in found.changes:
            self.state = written(self.state, found.changes[KEY])
        self.waves = [
            msgspec.structs.replace(each, status=found.wave_statuses.get(each.meta.key, each.status))
            for each in self.waves
        ]
        return found

    def homes(self, name: str) -> dict[str, list[str]]:
        return {
            adapter: [place.engine for place in each.places]
            for adapter, each in sorted(self.state.placements.items())
            if f"team/{name}" in each.waves
        }


def test_it_keeps_its_placements_its_record_and_the_last_words_of_its_status() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"], replicas=2), wave("two", ["b/0"])])
    before = world.waves[0].status
    assert before.phase == "Ready"
    world.waves[0] = unread(world.waves[0])
    found = world.plan()
    assert found.changes == {}
    status, reason, said = condition(found, "one")
    assert (status, reason) == ("Unknown", "InvalidRequest")
    assert DEFECT in said
    assert "install the version" in said
    after = found.wave_statuses["team/one"]
    assert (after.counts, after.summary, after.engines) == (before.counts, before.summary, before.engines)
    assert (after.phase, condition(found, "one", "Admitted")[0]) == ("Degraded", "True")
    assert found.wave_statuses["team/two"].phase == "Ready"
    assert world.plan().wave_statuses == found.wave_statuses


def test_it_goes_on_as_before_once_it_can_be_read() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"])])
    [readable] = world.waves
    world.waves = [unread(readable)]
    world.plan()
    world.waves = [msgspec.structs.replace(readable, status=world.waves[0].status)]
    found = world.plan()
    assert found.changes == {}
    assert found.wave_statuses["team/one"].phase == "Ready"


@given(bases(), some_waves(), st.data())
def test_whichever_waves_cannot_be_read_nothing_moves_and_nobody_else_is_let_in(
    of: ObservedBase, waves: list[ObservedWave], data: st.DataObject
) -> None:
    world = Settled(of, waves)
    first = plan(world.seen())
    admitted = {key for key, each in world.state.waves.items() if each.admitted}
    for index, each in enumerate(world.waves):
        if each.meta.key in admitted and data.draw(st.booleans()):
            world.waves[index] = unread(each, data.draw(st.sampled_from(["smol", "", "other"])))
    found = plan(world.seen(), first.known)
    assert found.changes == first.changes == {}
    assert found.manifests == first.manifests
    for each in world.waves:
        if not each.defect:
            assert found.wave_statuses[each.meta.key] == first.wave_statuses[each.meta.key]


def test_nobody_who_comes_first_by_priority_takes_its_room() -> None:
    world = Settled(base(slots=2), [wave("one", ["a/0", "a/1"])])
    world.waves = [unread(world.waves[0]), wave("urgent", ["b/0"], priority=9)]
    found = world.plan()
    assert list(world.state.placements) == ["a/0", "a/1"]
    assert condition(found, "urgent", "Admitted")[1] == "WaitingForCapacity"


def test_nobody_who_comes_first_by_priority_takes_its_names() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    other = wave("urgent", sources={"a/0": "pvc://samples/elsewhere"}, priority=9)
    lessons = training_wave("lessons", policies=Policies(list=(Policy("a/0"),)))
    world.base = training_worlds.base()
    world.waves = [unread(world.waves[0]), other, lessons, wave("same", ["a/0"])]
    found = world.plan()
    assert condition(found, "urgent", "Admitted")[1] == "SourceConflict"
    assert condition(found, "lessons", "Admitted")[1] == "PolicyConflict"
    assert condition(found, "same", "Admitted")[0] == "True", "the very same adapter is shared as ever"
    assert world.state.placements["a/0"].source == source("a/0")


def test_what_it_shares_stays_when_the_other_wave_goes() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"]), wave("two", ["a/1", "a/2"], replicas=2)])
    world.waves = [unread(world.waves[0])]
    world.plan()
    assert {name: len(homes) for name, homes in world.homes("one").items()} == {"a/0": 1, "a/1": 1}
    assert list(world.state.placements) == ["a/0", "a/1"]


def test_who_shares_an_adapter_with_it_says_what_that_is_from_now_on() -> None:
    """As when a revision is published, which the other wave follows."""
    old, new = ({"a/0": f"pvc://samples/{revision}"} for revision in ("old", "new"))
    later = wave("later", sources=old, created="2026-01-02T00:00:00Z")
    world = Settled(base(), [wave("one", sources=old), wave("two", sources=old), wave("three", sources=old)])
    world.waves = [*map(unread, world.waves[:2]), wave("three", sources=new), later]
    found = world.plan()
    assert condition(found, "three", "Admitted")[0] == "True"
    assert condition(found, "later", "Admitted")[1] == "SourceConflict", (
        "who shared nothing with it says nothing of it"
    )
    [placement] = world.state.placements.values()
    assert placement.source.uri == new["a/0"]
    assert sorted(placement.waves) == ["team/one", "team/three", "team/two"]
    assert world.plan().changes == {}


def test_where_the_map_has_no_record_of_it_it_is_told_what_it_was_read_from() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    world.waves, world.state = [unread(world.waves[0])], msgspec.structs.replace(world.state, waves={})
    world.plan()
    record = world.state.waves["team/one"]
    assert (record.chosen_by, record.adapters) == ("placement", 1)


def test_deleting_it_takes_all_of_it_away() -> None:
    world = Settled(base(), [wave("one", ["a/0"]), wave("two", ["b/0"])])
    gone = unread(world.waves[0])
    world.waves[0] = msgspec.structs.replace(gone, meta=msgspec.structs.replace(gone.meta, deleting=True))
    world.plan()
    assert (list(world.state.placements), list(world.state.waves)) == (["b/0"], ["team/two"])


def test_one_that_has_nothing_is_told_what_is_wrong_and_gets_nothing() -> None:
    world = Settled(base(), [unread(wave("one", ["a/0"]))])
    found = world.plan()
    assert found.wave_statuses["team/one"].phase == "Failed"
    for kind in ("Ready", "Admitted"):
        status, reason, said = condition(found, "one", kind)
        assert (status, reason) == ("False", "InvalidRequest")
        assert DEFECT in said
    assert world.state.placements == {}


@pytest.mark.parametrize("ref", ["", "other"])
def test_where_it_is_the_map_says_though_its_spec_does_not(ref: str) -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    world.waves = [unread(world.waves[0], ref)]
    found = world.plan()
    assert found.changes == {}
    assert condition(found, "one")[:2] == ("Unknown", "InvalidRequest")
    away = plan(snapshot(world.base, world.waves, redis_ok=False)).wave_statuses["team/one"]
    assert away.counts.wanted == 1, "nothing is made of it that nobody can know now"


def test_a_namespace_that_may_not_use_the_base_any_more_loses_it_all_the_same() -> None:
    of = base()
    shared = msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, tenants=[Tenant("other")]))
    world = Settled(shared, [wave("one", ["a/0"], namespace="other")])
    world.waves, world.base = [unread(world.waves[0])], of
    world.plan()
    assert world.state.placements == {}


def test_what_the_map_has_lost_is_written_again() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"], residency="Host", replicas=2)])
    before, world.waves = world.state, [unread(world.waves[0])]
    of = snapshot(world.base, world.waves, world.views(), remembered=before.placements)
    known = msgspec.structs.replace(of.maps[KEY], recorded=before.waves)
    change = plan(msgspec.structs.replace(of, maps={KEY: known})).changes[KEY]
    assert {each.adapter: each for each in change.set_placements} == before.placements
    assert {each.wave: each for each in change.set_waves} == before.waves


def test_what_a_lost_map_has_again_in_part_is_not_taken_for_all_of_it() -> None:
    """As when a call of many that write it again was not answered."""
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"]), wave("two", ["b/0"])])
    before, world.waves = world.state, list(map(unread, world.waves))
    part = MapState(None, None, {"a/0": before.placements["a/0"]}, {}, {"team/two": before.waves["team/two"]})
    of = snapshot(world.base, world.waves, world.views(), state=part, remembered=before.placements)
    known = msgspec.structs.replace(of.maps[KEY], recorded=before.waves)
    after = written(part, plan(msgspec.structs.replace(of, maps={KEY: known})).changes[KEY])
    assert {name: each.waves for name, each in after.placements.items()} == {
        name: each.waves for name, each in before.placements.items()
    }
    assert after.waves == before.waves


def test_where_its_base_cannot_be_read_either_nothing_changes_and_it_says_so_itself() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    readable, world.waves = world.base, [unread(world.waves[0])]
    world.base = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    found = world.plan()
    assert (found.changes, found.training, found.manifests) == ({}, {}, ())
    assert DEFECT in condition(found, "one")[2]
    world.base = readable
    assert world.plan().changes == {}, "the base that can be read again changes nothing of it"


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
    said = condition(found, "one")[2]
    assert DEFECT in said
    assert "no BaseModel smol" in said


def test_its_adapters_leave_an_engine_that_is_lost_as_any_others_do() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"])])
    world.waves = [unread(world.waves[0])]
    views = [world.views()[0], engine(1, alive=False)]
    found = plan(snapshot(world.base, world.waves, views, state=world.state, away_s={"smol-1": 60.0}))
    state = written(world.state, found.changes[KEY])
    assert {place.engine for each in state.placements.values() for place in each.places} == {"smol-0"}
    assert {name: each.waves for name, each in state.placements.items()} == dict.fromkeys(
        ["a/0", "a/1"], ("team/one",)
    )


@pytest.mark.parametrize("forgets", [False, True])
def test_engines_start_anew_as_carefully_as_ever_also_under_an_operator_that_has_just_begun(forgets: bool) -> None:
    cluster = Cluster(low=2)
    cluster.waves = [wave("one", ["a/0", "a/1"])]
    cluster.step()
    cluster.settings, cluster.waves = ["old", "old"], [unread(cluster.waves[0])]
    if forgets:
        step = cluster.step

        def begun_anew(after_s: float = 1.0) -> Plan:
            cluster.known = None
            return step(after_s)

        cluster.step = begun_anew  # type: ignore[method-assign]
    assert rolled(cluster) == [1, 0]
    assert cluster.settings == [newest(cluster)] * 2
    cluster.step()
    assert sorted(map(len, cluster.homes().values())) == [1, 1], "and no copy too many is left behind"


def test_an_engine_that_is_not_needed_goes_only_once_its_copies_are_elsewhere() -> None:
    cluster = Cluster()
    cluster.waves = [wave("one", ["a/0", "a/1", "a/2"]), wave("two", ["b/0", "b/1", "b/2"])]
    cluster.step()
    cluster.step()
    cluster.waves = [unread(cluster.waves[1])]
    cluster.step()
    cluster.step(SHRINK_AFTER_S)
    for _ in range(4):
        cluster.step()
    assert (cluster.replicas, sorted(chain(*cluster.homes().values()))) == (1, ["smol-0"] * 3)


# Training


def lessons(count: int = 2) -> World:
    """A wave that trains on one of two engines."""
    world = World(training_worlds.base(2, 2), [training_wave("w", count)], engines(2))
    world.step()
    world.say(Stage.RUNNING, 3)
    world.step()
    return world


def lose_sight(world: World) -> None:
    world.waves = [unread(each) if each.meta.name == "w" else each for each in world.waves]


def test_its_leases_and_its_record_stay_as_they_are() -> None:
    world = lessons()
    before, recorded = world.training, dict(world.recorded)
    assert len(world.leases) == 2
    lose_sight(world)
    found = world.step()
    assert (found.training, world.recorded) == ({}, recorded)
    assert condition(found, "w")[:2] == ("Unknown", "InvalidRequest")
    assert (world.status("w").phase, world.status("w").training is not None) == ("Training", True)
    world.say(Stage.COMPLETE, training_worlds.STEPS)
    world.step()
    assert world.training.trains == before.trains


def test_that_its_policies_have_ended_is_known_also_when_nobody_can_tell_of_it_any_more() -> None:
    world = World(training_worlds.base(slots=2), [training_wave("w", 2)], engines(1))
    world.step()
    lose_sight(world)
    world.say(Stage.COMPLETE, training_worlds.STEPS)
    world.step()
    assert [each.stage for each in world.training.training["team/w"].last_words] == [Stage.COMPLETE] * 2
    assert world.step().training == {}
    world.start_anew(2)
    world.waves.append(training_wave("v", 2))
    world.step()
    assert set(named("v", [0, 1])) <= world.leases.keys(), "and their slots are free"


def test_no_lease_of_it_is_granted_to_an_engine_that_has_started_anew() -> None:
    """By what it would have to train only the spec says, which cannot be read."""
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
    world = World(training_worlds.base(slots=4), [training_wave("w", 3)], engines(1))
    world.step()
    world.say(Stage.RUNNING)
    lose_sight(world)
    world.waves += [wave("urgent", ["a/0", "a/1"], priority=9), training_wave("more", 2, priority=9)]
    world.step()
    found = world.step()
    assert set(world.leases) == set(named("w", range(3)))
    assert condition(found, "urgent", "Admitted")[1] == "WaitingForCapacity"


@pytest.mark.parametrize("told", [True, False])
def test_nobody_gives_way_to_a_gang_that_would_need_its_slots(*, told: bool) -> None:
    """Also where its status cannot be read either."""
    of = training_worlds.base(slots=4, tenants=[Tenant("other")])
    world = World(of, [wave("one", ["a/0", "a/1"]), wave("two", ["b/0"])], engines(1))
    world.step()
    kept = unread(world.waves[0])
    kept = kept if told else msgspec.structs.replace(kept, status=AdapterWaveStatus())
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
    world.waves.insert(0, wave("has-it", sources={"team/w-1": "pvc://samples/elsewhere"}))
    world.step()
    lose_sight(world)
    world.waves.insert(0, wave("new", sources={"team/w-0": "pvc://samples/elsewhere"}, priority=9))
    found = world.step()
    status, reason, said = condition(found, "new", "Admitted")
    assert (status, reason) == ("False", "PolicyConflict")
    assert "wave team/w trains" in said
    assert condition(found, "has-it", "Admitted")[0] == "True", "who had it before keeps it, as ever"
    assert list(world.placements) == ["team/w-1"]
    lost = snapshot(world.base, world.waves, world.engines, remembered=world.placements)
    found = plan(msgspec.structs.replace(lost, training={KEY: TrainKnown(TrainState(), world.training)}))
    assert condition(found, "has-it", "Admitted")[0] == "True", "also when the map is lost"


def test_what_it_has_published_stays_served_and_follows_its_policies() -> None:
    world = lessons()
    world.say(Stage.RUNNING, 4, published=published(4))
    world.step()
    assert sorted(world.placements) == named("w", [0, 1])
    before = world.placements
    lose_sight(world)
    world.step()
    assert world.placements == before
    world.say(Stage.RUNNING, 5, published=published(5))
    world.step()
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


# Records of which this version reads a part


def in_part(world: World) -> None:
    """As the map is read after a rollback: what users have written is not understood."""
    training = {
        key: PartTraining(
            **{f: getattr(each, f) for f in each.__struct_fields__} | {"train": Train(policies=Policies(), steps=0)}
        )
        for key, each in world.training.training.items()
    }
    trains = {
        name: {
            policy: PartAssignment(
                **{f: getattr(lease, f) for f in lease.__struct_fields__} | {"settings": Policy(policy)}
            )
            for policy, lease in of.items()
        }
        for name, of in world.training.trains.items()
    }
    world.training = msgspec.structs.replace(world.training, training=training, trains=trains)


def test_records_that_are_read_in_part_are_left_alone_with_their_wave() -> None:
    world = lessons()
    in_part(world)
    before = world.training
    lose_sight(world)
    assert world.step().training == {}
    assert world.training == before


def test_records_that_are_read_in_part_are_written_anew_for_a_wave_that_can_be_read() -> None:
    world = lessons()
    before = world.training
    in_part(world)
    world.step()
    assert world.training.training == before.training
    assert world.leases == {
        name: (where, lease) for where, of in before.trains.items() for name, lease in of.items()
    }, "under the lease that there is"


@pytest.mark.parametrize("leases_alone", [False, True])
def test_records_that_are_read_in_part_stay_until_the_manifest_of_their_wave_is_read(*, leases_alone: bool) -> None:
    """As whenever an operator has just begun: what is to be written of the wave is not known yet."""
    uri = "s3://b/p.jsonl"
    of = training_wave("w", policies=Policies(manifest=uri))
    said = Inputs(manifests={uri: tuple(Policy(name, rank=8) for name in named("w", [0, 1]))})
    world = World(training_worlds.base(), [of], engines(1), inputs=said)
    world.step()
    world.say(Stage.RUNNING, 3, published=published(3))
    world.step()
    before, placements = world.training, world.placements
    in_part(world)
    if leases_alone:
        world.training = msgspec.structs.replace(world.training, training=before.training)
    world.inputs = Inputs()
    assert world.step().training == {}
    assert world.placements == placements
    world.inputs = said
    world.step()
    assert (world.training.training, world.training.trains) == (before.training, before.trains)


def test_records_that_are_read_in_part_are_not_written_where_the_map_has_lost_them() -> None:
    """Who trained by them would train by what nobody has asked for."""
    world = lessons()
    in_part(world)
    lose_sight(world)
    of = snapshot(world.base, world.waves, world.engines, remembered={})
    found = plan(msgspec.structs.replace(of, training={KEY: TrainKnown(TrainState(), world.training)}))
    assert found.training == {}


def test_records_that_the_map_has_lost_are_written_again_as_they_were() -> None:
    world = lessons()
    lose_sight(world)
    of = snapshot(world.base, world.waves, world.engines, remembered={})
    found = plan(msgspec.structs.replace(of, training={KEY: TrainKnown(TrainState(), world.training)}))
    written_again = training_worlds.written(TrainState(), found.training[KEY])
    assert (written_again.training, written_again.trains) == (world.training.training, world.training.trains)


def test_records_that_are_read_in_part_go_with_their_wave() -> None:
    world = lessons()
    in_part(world)
    world.waves = []
    world.step()
    assert (world.leases, world.training.training) == ({}, {})
