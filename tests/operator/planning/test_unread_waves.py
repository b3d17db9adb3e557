"""A wave whose spec cannot be read, for example after a rollback, keeps what it has, and no other wave takes it."""

from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import MapState
from mint_contracts.resources import Tenant
from mint_contracts.training import Policies, Policy
from mint_operator.planning.elastic import SHRINK_AFTER_S
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from tests.operator import training_worlds
from tests.operator.clusters import Cluster, newest, rolled
from tests.operator.drawn_worlds import bases, some_waves
from tests.operator.training_worlds import training_wave
from tests.operator.unread_worlds import Settled, condition
from tests.operator.worlds import DEFECT, KEY, base, engine, snapshot, source, unread, wave, written


def test_it_keeps_its_placements_its_record_and_the_last_words_of_its_status() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"], replicas=2), wave("two", ["b/0"])])
    before = world.waves[0].status
    assert before.phase == "Ready"
    world.waves[0] = unread(world.waves[0])
    found = world.plan()
    assert found.changes == {}
    status, reason, message = condition(found, "one")
    assert (status, reason) == ("Unknown", "InvalidRequest")
    assert DEFECT in message
    assert "install the version" in message
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
    """For example, the other wave follows a newly published revision."""
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
        status, reason, message = condition(found, "one", kind)
        assert (status, reason) == ("False", "InvalidRequest")
        assert DEFECT in message
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


def test_records_lost_from_the_map_are_written_again() -> None:
    world = Settled(base(2, 2), [wave("one", ["a/0", "a/1"], residency="Host", replicas=2)])
    before, world.waves = world.state, [unread(world.waves[0])]
    of = snapshot(world.base, world.waves, world.views(), remembered=before.placements)
    known = msgspec.structs.replace(of.maps[KEY], recorded=before.waves)
    change = plan(msgspec.structs.replace(of, maps={KEY: known})).changes[KEY]
    assert {each.adapter: each for each in change.set_placements} == before.placements
    assert {each.wave: each for each in change.set_waves} == before.waves


def test_a_partly_restored_map_is_not_taken_for_complete() -> None:
    """This happens if one of the calls that rewrite the map was not answered."""
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
