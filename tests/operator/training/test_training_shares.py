"""Training waves count toward namespaces' quotas and shares just as serving waves do."""

import pytest

from mint_contracts.resources import Serve, Tenant
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.snapshot import ObservedWave
from tests.operator import worlds
from tests.operator.training_worlds import (
    FAILURE,
    STEPS,
    World,
    base,
    engines,
    named,
    planned,
    published,
    replicas,
    training_wave,
)

ACME = Tenant(namespace="acme", device_slots=4)
OTHER = Tenant(namespace="other")


def admitted(world: World, name: str) -> tuple[str, str]:
    found = next(each for each in world.status(name).conditions if each.type == "Admitted")
    return found.status, found.reason


def test_trained_policies_count_in_a_namespaces_quota_for_serving() -> None:
    world = planned(base(slots=8, tenants=[ACME]), [training_wave("w", 3, namespace="acme")], engines(1))
    world.waves.append(worlds.wave("s", ["a", "b"], namespace="acme"))
    world.step()
    assert len(world.leases) == 3
    assert admitted(world, "s") == ("False", "WaitingForQuota")
    world.waves[1] = worlds.wave("s", ["a"], namespace="acme")
    world.step()
    assert admitted(world, "s") == ("True", "Admitted")


def test_served_adapters_count_in_a_namespaces_quota_for_training() -> None:
    world = planned(base(slots=8, tenants=[ACME]), [worlds.wave("s", ["a", "b"], namespace="acme")], engines(1))
    world.waves.append(training_wave("w", 3, namespace="acme"))
    world.step()
    assert world.leases == {}
    assert admitted(world, "w") == ("False", "WaitingForQuota")
    del world.waves[0]
    world.step()
    assert len(world.leases) == 3


def test_a_namespaces_training_ranks_as_high_as_the_base_allows_it() -> None:
    low = Tenant(namespace="acme", max_priority=0)
    late = training_wave("w", 8, namespace="acme", priority=9, created="2026-01-02T00:00:00Z")
    world = planned(base(slots=8, tenants=[low]), [training_wave("v", 8), late], engines(1))
    assert {name.partition("/")[0] for name in world.leases} == {"team"}
    assert admitted(world, "w") == ("False", "WaitingForCapacity")
    message = next(each.message for each in world.status("w").conditions if each.type == "Admitted")
    assert message.endswith(
        "; spec.priority counts as 0, the most that spec.tenants of the BaseModel allows namespace acme"
    )


def test_an_elastic_wave_trains_as_much_as_its_quota_allows() -> None:
    elastic = training_wave("w", 6, namespace="acme", admission="Elastic", serve=Serve(residency="Host"))
    world = planned(base(slots=8, tenants=[ACME]), [elastic], engines(1))
    world.step()
    assert len(world.leases) == 4
    world.hear(Stage.COMPLETE, STEPS, "acme/w-0", published=published(STEPS))
    assert len([name for name in world.leases if name != "acme/w-0"]) == 4


def test_trained_and_served_adapters_count_on() -> None:
    world = planned(base(slots=8, tenants=[ACME]), [training_wave("v", 3, namespace="acme")], engines(1))
    world.complete()
    world.waves.append(training_wave("w", 2, namespace="acme"))
    world.step()
    assert admitted(world, "w") == ("False", "WaitingForQuota")


def test_a_wave_larger_than_its_namespaces_quota_says_so_at_once() -> None:
    world = planned(base(slots=8, tenants=[ACME]), [training_wave("w", 5, namespace="acme")], engines(1))
    assert world.status("w").phase == "Failed"
    assert admitted(world, "w") == ("False", "CapacityExceeded")


def test_namespaces_take_turns_in_training_and_what_one_trains_counts_against_it() -> None:
    of = base(slots=8, tenants=[OTHER])
    world = planned(of, [training_wave("first", 4), worlds.wave("s", ["a", "b", "c", "d"])], engines(1))
    assert len(world.leases) == 4
    world.step()
    world.waves += [
        training_wave("second", 4, created="2026-01-02T00:00:00Z"),
        training_wave("theirs", 4, namespace="other", created="2026-01-03T00:00:00Z"),
    ]
    del world.waves[1]
    world.step()
    world.step()
    assert set(world.leases) == {*named("first", range(4)), *(f"other/theirs-{index}" for index in range(4))}


def test_trained_policies_count_in_a_namespaces_share_for_serving() -> None:
    of = base(slots=8, tenants=[OTHER])
    world = planned(of, [training_wave("w", 4)], engines(1))
    world.waves += [
        worlds.wave("ours", ["a", "b", "c"], created="2026-01-02T00:00:00Z"),
        worlds.wave("theirs", ["d", "e", "f"], namespace="other", created="2026-01-03T00:00:00Z"),
    ]
    world.step()
    assert admitted(world, "theirs") == ("True", "Admitted")
    assert admitted(world, "ours") == ("False", "WaitingForCapacity")


def test_adapters_that_waves_share_count_once_for_training() -> None:
    """Three waves of the same three adapters leave five of eight slots."""
    serving = [worlds.wave(name, ["a", "b", "c"], namespace="acme") for name in "xyz"]
    world = planned(base(slots=8, tenants=[Tenant(namespace="acme", device_slots=5)]), serving, engines(1))
    world.waves.append(training_wave("w", 2, namespace="acme", serve=Serve(residency="Host")))
    world.step()
    assert len(world.leases) == 2
    world.waves.append(training_wave("v", 3, serve=Serve(residency="Host")))
    world.step()
    assert len(world.leases) == 5


def test_what_is_served_gives_way_to_training_of_higher_priority_in_its_own_namespace() -> None:
    world = planned(base(slots=8), [worlds.wave("s", [f"a/{index}" for index in range(8)])], engines(1))
    world.waves += [training_wave("same", 4, created="2026-01-02T00:00:00Z")]
    world.step()
    assert admitted(world, "s") == ("True", "Admitted")
    world.waves += [training_wave("higher", 4, priority=1, created="2026-01-03T00:00:00Z")]
    world.step()
    world.step()
    assert set(world.leases) == set(named("higher", range(4)))
    assert admitted(world, "s") == ("False", "WaitingForCapacity")


def test_revisions_that_a_wave_has_published_do_not_give_way_to_training_of_lower_priority() -> None:
    first = training_wave("first", 4, namespace="other", priority=1)
    world = planned(base(slots=4, tenants=[OTHER]), [first], engines(1))
    world.complete()
    world.waves.append(training_wave("second", 4))
    for _ in range(2):
        world.step()
    assert set(world.placements) == {f"other/first-{index}" for index in range(4)}
    assert admitted(world, "second") == ("False", "WaitingForCapacity")


def test_the_rest_of_a_wave_trains_in_free_slots_that_are_too_few_for_what_it_has_published() -> None:
    world = planned(base(slots=8), [training_wave("w", 4, admission="Elastic")], engines(1))
    world.say(Stage.COMPLETE, STEPS, *named("w", range(3)), published=published(STEPS))
    world.say(Stage.PAUSED, 4, *named("w", [3]))
    world.change("w", paused=True)
    world.step()
    world.waves.append(worlds.wave("s", [f"a/{index}" for index in range(6)], priority=1))
    for _ in range(2):
        world.step()
    assert admitted(world, "s") == ("True", "Admitted")
    assert not world.placements.keys() & set(named("w", range(4)))
    world.change("w", paused=False)
    for _ in range(2):
        world.step()
        assert world.leases["team/w-3"][1].order is Order.RUN
        assert admitted(world, "s") == ("True", "Admitted")


def test_what_a_wave_publishes_after_one_of_its_policies_has_failed_is_served_before_others_train() -> None:
    first = training_wave("first", 2, namespace="other", priority=1, max_failed=1)
    world = planned(base(slots=2, tenants=[OTHER]), [first], engines(1))
    world.say(Stage.RUNNING, 4)
    world.say(Stage.FAILED, 4, "other/first-0", failure=FAILURE)
    for _ in range(2):
        world.step()
    world.waves.append(training_wave("second", 2))
    world.step()
    world.say(Stage.COMPLETE, STEPS, "other/first-1", published=published(STEPS))
    for _ in range(2):
        world.step()
        assert set(world.placements) == {"other/first-1"}
        assert admitted(world, "second") == ("False", "WaitingForCapacity")


def test_a_gang_that_cannot_begin_takes_nothing_from_others() -> None:
    world = planned(base(slots=4), [worlds.wave("s", ["a", "b", "c"]), training_wave("w", 4)], engines(1))
    world.step()
    assert admitted(world, "w") == ("False", "WaitingForCapacity")
    world.waves.append(training_wave("v", 1, created="2026-01-02T00:00:00Z"))
    for _ in range(2):
        world.step()
        assert list(world.leases) == ["team/v-0"]
        assert admitted(world, "s") == ("True", "Admitted")


@pytest.mark.parametrize(
    ("tenants", "others"),
    [
        ([], [worlds.wave("s", [f"a/{index}" for index in range(17)])]),
        ([ACME], [worlds.wave(name, [f"{name}/{index}" for index in range(4)], namespace="acme") for name in "xyzv"]),
    ],
    ids=["never fits", "wait for their quota"],
)
def test_engines_come_for_a_gang_although_others_want_more_that_no_engine_would_give_them(
    tenants: list[Tenant], others: list[ObservedWave]
) -> None:
    world = planned(base(1, 4, slots=4, tenants=tenants), others, engines(1), replicas=1)
    world.waves.append(training_wave("w", 12, priority=-1, serve=Serve(residency="Host")))
    world.step()
    assert replicas(world.step()) == 3 + len(tenants)


def test_what_is_free_is_not_kept_for_a_gang_that_needs_engines_which_are_not_there() -> None:
    world = World(base(1, 4, slots=4), [training_wave("w", 16)], engines(1), replicas=1)
    assert replicas(world.step()) == 4
    world.waves.append(training_wave("v", 1, created="2026-01-02T00:00:00Z"))
    for _ in range(2):
        world.step()
        assert list(world.leases) == ["team/v-0"]


def test_what_gives_way_to_a_gang_is_not_taken_by_waves_behind_it() -> None:
    world = planned(base(slots=8), [training_wave("v", 2), worlds.wave("s", ["a", "b", "c"])], engines(1))
    world.step()
    world.waves.append(training_wave("w", 6, priority=1, created="2026-01-02T00:00:00Z"))
    world.waves.append(training_wave("u", 1, created="2026-01-03T00:00:00Z"))
    world.step()
    world.step()
    assert set(world.leases) == {*named("v", range(2)), *named("w", range(6))}
    assert admitted(world, "s") == ("False", "WaitingForCapacity")


def test_what_is_served_does_not_give_way_to_a_gang_whose_slots_another_wave_takes() -> None:
    """The gang needs 10 of 16 slots, of which there are 8; once the other has 5, it has to wait for that."""
    serving = worlds.wave("s", ["a", "b", "c"], priority=1)
    world = planned(base(2, 4, slots=4), [training_wave("w", 10, priority=1), serving], engines(2))
    world.waves.append(training_wave("v", 5, serve=Serve(residency="Host"), created="2026-01-02T00:00:00Z"))
    for _ in range(3):
        world.step()
        assert set(world.leases) == set(named("v", range(5)))
        assert admitted(world, "s") == ("True", "Admitted")
