"""Engines are added at once, and removed late: only once their copies are elsewhere."""

import pytest

from mint_contracts.records import Failure
from mint_contracts.resources import Residency
from mint_operator.planning.elastic import PATIENCE_S, SHRINK_AFTER_S
from mint_operator.planning.sizes import Size
from tests.operator.clusters import GONE, UNREACHABLE, Cluster, newest, over_two
from tests.operator.worlds import KEY, base, wave

HALF, LARGE = Size(8, base().host_bytes // 2), Size(8, base().host_bytes * 6 // 10)  # no two fit but halves


def test_engines_come_at_once_for_waves_and_for_traffic() -> None:
    cluster = Cluster()
    cluster.step()
    assert cluster.replicas == 1
    cluster.waves = [wave("one", [f"a/{index}" for index in range(6)])]
    cluster.step()
    assert cluster.replicas == 2
    cluster.waves = []
    busy = Cluster()
    busy.busy = 2
    busy.step()
    assert busy.replicas == 2
    busy.busy = 9
    busy.step()
    assert busy.replicas == 2, "never more than the base may have"


def test_an_engine_goes_only_after_a_while_and_once_its_copies_are_ready_elsewhere() -> None:
    cluster = Cluster()
    cluster.waves = [wave("one", ["a/0", "a/1", "a/2"]), wave("two", ["b/0", "b/1", "b/2"])]
    cluster.step()
    cluster.step()
    before = cluster.homes()
    cluster.waves = cluster.waves[:1]
    cluster.step()
    assert cluster.replicas == 2
    cluster.step(SHRINK_AFTER_S - 1)
    assert cluster.homes() == {name: before[name] for name in ["a/0", "a/1", "a/2"]}, "too early: nothing moves"
    cluster.step(2)
    moving = [name for name in cluster.homes() if before[name] == ["smol-1"]]
    assert moving
    cluster.obeys = False  # the new copies take their time
    cluster.step()
    cluster.step()
    assert all(cluster.homes()[name] == ["smol-1", "smol-0"] for name in moving), "both hold it meanwhile"
    assert cluster.replicas == 2
    cluster.obeys = True
    cluster.step()
    assert all(engines == ["smol-0"] for engines in cluster.homes().values())
    cluster.step()
    assert cluster.replicas == 1


def shrinking(*, most: int) -> tuple[Cluster, str]:
    """Return two engines of which one is needed and `most` are allowed, and the adapter that only the second has."""
    cluster = over_two()
    cluster.settings = [newest(cluster)] * 2
    cluster.step()
    [name] = [name for name, homes in cluster.homes().items() if homes == ["smol-1"]]
    cluster.low, cluster.high = 1, most
    return cluster, name


@pytest.mark.parametrize(("why", "wait_s"), [(GONE, 0.0), (UNREACHABLE, PATIENCE_S)])
def test_engines_beyond_the_most_that_there_may_be_go_although_an_adapter_cannot_be_loaded_elsewhere(
    why: Failure, wait_s: float
) -> None:
    cluster, name = shrinking(most=1)
    cluster.refused, cluster.refusal = {(0, name)}, why
    cluster.step()
    cluster.step(SHRINK_AFTER_S)
    if wait_s:
        cluster.step(wait_s - 1)
        assert cluster.replicas == 2, "it may still come"
    for _ in range(3):
        cluster.step()
    assert (cluster.replicas, cluster.homes()[name]) == (1, ["smol-0"])


def test_engines_beyond_the_most_that_there_may_be_wait_for_copies_that_are_on_their_way() -> None:
    cluster, name = shrinking(most=1)
    cluster.obeys = False
    cluster.step()
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S + PATIENCE_S)
    assert cluster.replicas == 2
    cluster.obeys = True
    for _ in range(3):
        cluster.step()
    assert (cluster.replicas, cluster.homes()[name]) == (1, ["smol-0"])


def test_engines_beyond_the_most_that_there_may_be_go_although_the_others_have_no_room_for_a_copy() -> None:
    cluster = Cluster(high=3)
    cluster.sizes = {"a/0": LARGE, "a/1": LARGE, "b": HALF}
    cluster.waves = [wave("one", ["a/0", "a/1", "b"], residency="Host")]
    unmoved(cluster)
    [found] = [each for each in cluster.step().base_statuses[KEY].conditions if each.type == "Progressing"]
    assert found.message == "3 of 3 engines ready; smol-2 is removed once another engine has room for b"
    cluster.high, cluster.ready[0] = 2, False
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S + PATIENCE_S)
    assert cluster.replicas == 3, "an engine that is away may have room"
    cluster.ready[0] = True
    for _ in range(3):
        status = cluster.step().base_statuses[KEY]
    assert cluster.replicas == 2
    [found] = [each for each in status.conditions if each.type == "Progressing"]
    assert (found.status, found.reason) == ("False", "Settled")


def test_engines_beyond_the_most_that_there_may_be_go_although_something_else_waits_for_room() -> None:
    cluster = Cluster(high=3)
    cluster.sizes = {"a/0": LARGE, "a/1": LARGE, "b": HALF}
    cluster.waves, cluster.busy = [wave("one", ["a/0", "a/1"], residency="Host")], 3
    cluster.step()
    cluster.step()
    cluster.high = 2
    cluster.waves.append(wave("two", ["b"], residency="Host"))
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S + PATIENCE_S)
    assert (cluster.replicas, cluster.homes()["b"]) == (2, [])


def test_an_engine_that_there_may_be_stays_for_an_adapter_that_cannot_be_loaded_elsewhere_and_the_base_says_so() -> (
    None
):
    cluster, name = shrinking(most=2)
    cluster.refused, cluster.refusal = {(0, name)}, GONE
    cluster.step()
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S + PATIENCE_S)
    assert (cluster.replicas, cluster.homes()[name]) == (2, ["smol-1", "smol-0"])
    status = cluster.step().base_statuses[KEY]
    [found] = [each for each in status.conditions if each.type == "Progressing"]
    message = f"2 of 2 engines ready; smol-1 is removed once {name} is ready on smol-0"
    assert (found.status, found.reason, found.message) == ("True", "ScalingDown", message)
    assert status.phase == "Ready"


def test_engines_beyond_a_lowered_maximum_go_at_once_and_those_below_it_only_after_a_while() -> None:
    cluster = Cluster(high=4)
    cluster.busy = 4
    cluster.step()
    cluster.busy, cluster.high = 0, 2
    cluster.step()
    assert cluster.replicas == 2
    cluster.step(SHRINK_AFTER_S - 2)
    assert cluster.replicas == 2
    cluster.step(2)
    assert cluster.replicas == 1


@pytest.mark.parametrize("residency", ["Host", "Disk"])
def test_engines_come_for_what_is_held_in_memory_or_on_disk_and_stay_for_it(residency: Residency) -> None:
    cluster = Cluster(high=6)
    most = base().host_bytes if residency == "Host" else base().disk_bytes
    cluster.sizes = dict.fromkeys("abcd", Size(8, most * 6 // 10)) | {"e": Size(8, most // 2)}
    cluster.waves = [wave("one", "abcd", residency=residency)]
    homes = unmoved(cluster)
    assert sorted(homes.values()) == [[f"smol-{ordinal}"] for ordinal in range(4)], "no two fit on one"
    cluster.waves.append(wave("two", "e", residency=residency))
    assert unmoved(cluster) == homes | {"e": ["smol-4"]}
    cluster.waves = [wave("one", "a", residency=residency)]
    for _ in range(4):
        cluster.step(SHRINK_AFTER_S)
    assert (cluster.replicas, cluster.homes()) == (1, {"a": ["smol-0"]})


def test_an_engine_goes_in_time_where_the_clock_was_put_back() -> None:
    cluster = Cluster()
    cluster.busy = 2
    cluster.step()
    cluster.busy = 0
    cluster.step()
    cluster.step(-86_400.0)
    assert cluster.replicas == 2
    cluster.step(SHRINK_AFTER_S + 1)
    cluster.step()
    assert cluster.replicas == 1


def unmoved(cluster: Cluster) -> dict[str, list[str]]:
    """Plan a few times, check that nothing moves any more and no engine is in excess, and return all homes."""
    for _ in range(6):
        cluster.step()
    homes = cluster.homes()
    for _ in range(4):
        cluster.step(SHRINK_AFTER_S)
        assert (cluster.replicas, cluster.homes()) == (len(homes), homes)
    return homes


def test_an_engine_that_is_needed_again_stays() -> None:
    cluster = Cluster()
    waves = [wave("one", ["a/0", "a/1", "a/2"]), wave("two", ["b/0", "b/1", "b/2"])]
    cluster.waves = waves
    cluster.step()
    cluster.waves = waves[:1]
    cluster.step()
    cluster.waves = waves
    cluster.step()
    cluster.waves = waves[:1]
    cluster.step(SHRINK_AFTER_S - 1)
    cluster.step(2)
    assert cluster.replicas == 2, "the while begins anew"
