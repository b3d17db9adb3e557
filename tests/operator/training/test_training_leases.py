"""Leases: they stay with their engine, grow with its starts, and end with their wave."""

import msgspec
import pytest

from mint_contracts.resources import Serve
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.manifests import settings_digest
from mint_operator.planning.snapshot import EnginePod
from tests.operator import worlds
from tests.operator.training_worlds import (
    FAILURE,
    base,
    dead,
    engines,
    loading,
    named,
    orders,
    planned,
    restarted,
    training,
    training_wave,
)
from tests.operator.worlds import RELEASE


def test_leases_stay_while_nothing_changes_and_grow_with_each_start_of_the_engine() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
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


def test_a_policy_that_was_trained_under_a_later_lease_before_is_given_one_later_still() -> None:
    """As after the clock was put back, or an older Redis restored: only the store knows of that lease."""
    world = planned(base(), [training_wave("w", 2)], engines(1))
    other, later = world.leases["team/w-1"], int(world.now * 1000) + 600_000
    world.say(Stage.RUNNING, 1)
    world.say(Stage.FAILED, 0, "team/w-0", failure=FAILURE, newer_lease=later)
    for _ in range(2):
        world.step()
        lease = world.leases["team/w-0"][1]
        assert (lease.lease, lease.order) == (later + 1, Order.RUN)
        assert world.leases["team/w-1"] == other
        assert not world.status("w").failures
    world.say(Stage.RUNNING, 1)
    world.start_anew(2)
    world.step()
    assert world.leases["team/w-0"][1].lease == later + 2


def test_policies_move_from_an_engine_that_stays_away() -> None:
    world = planned(base(2, 2), [training_wave("w", 2)], engines(2))
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


def test_policies_move_from_an_engine_that_is_back_and_long_in_loading_its_base() -> None:
    world = planned(base(2, 2), [training_wave("w", 2)], engines(2))
    world.say(Stage.RUNNING, 3)
    home = {engine for engine, _ in world.leases.values()}.pop()
    ordinal = int(home[-1])
    world.engines[ordinal] = loading(world.engines[ordinal], 2)
    world.unready_s = {home: 60.0}
    world.step()
    assert {(engine, lease.incarnation) for engine, lease in world.leases.values()} == {(home, 2)}
    before = world.leases
    world.unready_s = {home: 150.0}
    world.step()
    assert {engine for engine, _ in world.leases.values()} == {f"smol-{1 - ordinal}"}
    assert all(lease.lease > before[name][1].lease for name, (_, lease) in world.leases.items())
    moved = world.leases
    world.engines[ordinal] = restarted(engines(2)[ordinal], 2)
    world.unready_s = {}
    world.step()
    assert world.leases == moved


def test_policies_of_a_lost_engine_go_to_one_that_is_ready_before_one_that_starts_anew_as_well() -> None:
    world = planned(base(3, 3), [training_wave("w", 2)], engines(3))
    home = int({engine for engine, _ in world.leases.values()}.pop()[-1])
    fails, stays = [ordinal for ordinal in range(3) if ordinal != home]
    for ordinal in (home, fails):
        world.engines[ordinal] = loading(world.engines[ordinal], 2)
    world.unready_s = {f"smol-{home}": 150.0, f"smol-{fails}": 5.0}
    world.step()
    assert {engine for engine, _ in world.leases.values()} == {f"smol-{stays}"}


@pytest.mark.parametrize(("priority", "moves"), [(1000, False), (-1000, True)], ids=["first", "last"])
def test_policies_of_a_late_engine_leave_slots_to_served_copies_that_come_before_them(
    priority: int, moves: bool
) -> None:
    served = worlds.wave("s", [f"a/{index}" for index in range(4)], priority=priority)
    world = planned(base(2, 2, slots=4), [served, training_wave("w", 2)], engines(2))
    world.step()
    home = {engine for engine, _ in world.leases.values()}.pop()
    other = f"smol-{1 - int(home[-1])}"
    world.engines[int(home[-1])] = loading(world.engines[int(home[-1])], 2)
    world.unready_s = {home: 150.0}
    for _ in range(3):
        world.step()
        assert {engine for engine, _ in world.leases.values()} == {other if moves else home}
    on_other = [name for name, each in world.placements.items() if each.places[0].engine == other]
    assert len(on_other) == (2 if moves else 4)


def test_policies_of_a_late_engine_do_not_wait_for_served_copies_that_cannot_leave_it() -> None:
    served = worlds.wave("s", ["a/0", "a/1"], replicas=2, priority=1000)
    world = planned(base(2, 2, slots=4), [served, training_wave("w", 2)], engines(2))
    world.step()
    home = int({engine for engine, _ in world.leases.values()}.pop()[-1])
    world.engines[home] = loading(world.engines[home], 2)
    world.unready_s = {f"smol-{home}": 150.0}
    world.step()
    assert {engine for engine, _ in world.leases.values()} == {f"smol-{1 - home}"}


def test_policies_begin_on_an_engine_that_has_started_anew_already_before_one_that_is_to() -> None:
    of = base(2, 2)
    newest = settings_digest(of, RELEASE)
    pods = [EnginePod(f"smol-{at}", f"10.0.0.{at}", True, settings=each) for at, each in enumerate(["old", newest])]
    world = planned(of, [training_wave("w", 2)], engines(2), pods=tuple(pods))
    assert {engine for engine, _ in world.leases.values()} == {"smol-1"}


def test_policies_that_fit_nowhere_else_stay_with_the_next_start_of_their_engine_however_long_it_loads() -> None:
    world = planned(base(1, 2, slots=2), [training_wave("w", 2), training_wave("v", 2)], engines(2))
    world.step()
    assert {engine for engine, _ in world.leases.values()} == {"smol-0", "smol-1"}
    homes = {name: engine for name, (engine, _) in world.leases.items()}
    world.engines[1] = loading(world.engines[1], 2)
    world.unready_s = {"smol-1": 150.0}
    world.step()
    assert {name: engine for name, (engine, _) in world.leases.items()} == homes
    assert orders(world) == {Order.RUN}
    assert {lease.incarnation for engine, lease in world.leases.values() if engine == "smol-1"} == {2}
    assert [world.status(name).phase for name in "wv"] == ["Placing", "Placing"]


@pytest.mark.parametrize("stage", [Stage.FAILED, Stage.CANCELLED])
def test_an_abandoned_policy_is_not_trained_again_by_a_restarted_engine(stage: Stage) -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
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


def test_a_wave_deleted_leaves_nothing_and_one_made_anew_starts_anew() -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.complete()
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
    world = planned(base(), [training_wave("w", 2)], engines(1))
    before = world.leases
    world.say(Stage.RUNNING, 3)
    world.training = msgspec.structs.replace(world.training, training={}, trains={})
    world.version = None
    world.step()
    assert world.leases == before


def test_policies_that_fit_a_restarted_engine_no_more_go_to_others() -> None:
    """Its deviceSlots was lowered; it holds them all until it restarts for that."""
    wave = training_wave("w", 4, admission="Elastic", serve=Serve(residency="Host"))
    world = planned(base(1, 2, slots=4), [wave], engines(2), replicas=2)
    before = world.leases
    world.say(Stage.RUNNING, 1)
    world.base = base(1, 2, slots=2)
    world.step()
    assert {name: engine for name, (engine, _) in world.leases.items()} == dict.fromkeys(before, "smol-0")
    world.engines[0] = restarted(world.engines[0], 2)
    world.step()
    assert sorted(engine for engine, _ in world.leases.values()) == ["smol-0", "smol-0", "smol-1", "smol-1"]
    assert all(lease.lease > before[name][1].lease for name, (_, lease) in world.leases.items())
