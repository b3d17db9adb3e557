"""An only engine restarts with a new spec only once a second one has taken over, if the base may have two."""

from collections.abc import Sequence

import msgspec
import pytest

from mint_contracts.records import Failure
from mint_operator.planning.elastic import SECOND_WITHIN_S, SHRINK_AFTER_S
from mint_operator.planning.engines import Engine
from mint_operator.planning.snapshot import EnginePod, ObservedWave
from tests.operator.clusters import Cluster, newest
from tests.operator.statuses import ready
from tests.operator.worlds import engine, wave

NO_ROOM = Failure("Unschedulable", "0/1 nodes are available: 1 Insufficient memory.", terminal=False)
GATED = Failure("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", terminal=False)
BAD_IMAGE = Failure("ImagePullBackOff", "no such image", terminal=False)
NO_CLAIM = Failure("Unschedulable", 'persistentvolumeclaim "new-models" not found', terminal=False)
WAVES = [wave("one", ["a/0", "a/1"])]


def rolling(high: int = 2, waves: Sequence[ObservedWave] = WAVES, *, up: bool = True) -> Cluster:
    """Return a base of one engine, `up` or not, whose image has just changed."""
    cluster = Cluster(low=1, high=high)
    cluster.waves = list(waves)
    cluster.step()
    cluster.settings = [newest(cluster)]
    cluster.step()
    assert cluster.replicas == 1
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.up[0] = cluster.ready[0] = up
    cluster.step()
    return cluster


def start(cluster: Cluster, ordinal: int, *, ends: bool = True) -> None:
    """Start an engine's pod with the latest settings; it is ready once `ends`."""
    cluster.settings[ordinal:] = [newest(cluster), *cluster.settings[ordinal + 1 :]]
    cluster.up[ordinal] = cluster.ready[ordinal] = ends


def taken_over() -> Cluster:
    """Return a base without waves, of which the second engine alone answers while the first one restarts."""
    cluster = rolling(waves=[])
    start(cluster, 1)
    while cluster.partition:
        cluster.step()
    start(cluster, 0, ends=False)
    cluster.step()
    return cluster


def progress(cluster: Cluster) -> str:
    return next(each.message for each in cluster.status.conditions if each.type == "Progressing")


@pytest.mark.parametrize("waves", [WAVES, []], ids=["with adapters", "without"])
def test_a_second_engine_takes_over_while_the_only_one_restarts_and_goes_again(waves: list[ObservedWave]) -> None:
    cluster = rolling(waves=waves)
    assert (cluster.replicas, cluster.partition) == (2, 1), "the second has the latest spec"
    start(cluster, 1, ends=False)
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S)
    assert (cluster.replicas, cluster.partition) == (2, 1), "however long it loads"
    assert progress(cluster) == "1 of 2 engines updated, 1 ready; smol-0 restarts once smol-1 is ready"
    assert (cluster.status.phase, ready(cluster.status.conditions)) == ("Rolling", ("True", "EnginesReady"))
    start(cluster, 1)
    while cluster.partition:
        cluster.step()
    assert all("smol-1" in homes for homes in cluster.homes().values())
    start(cluster, 0, ends=False)
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S)
        assert (cluster.status.phase, ready(cluster.status.conditions)[0]) == ("Rolling", "True")
    assert cluster.replicas == 2, "nobody else answers"
    start(cluster, 0)
    for _ in range(3):
        cluster.step()
    assert (cluster.replicas, cluster.status.phase) == (1, "Ready")
    assert all(homes == ["smol-0"] for homes in cluster.homes().values())


@pytest.mark.parametrize("lack", [NO_ROOM, GATED])
def test_without_room_for_a_second_one_the_only_one_restarts_alone_after_a_while(lack: Failure) -> None:
    cluster = rolling()
    start(cluster, 1, ends=False)
    cluster.troubles[1] = lack
    cluster.step()
    cluster.step(SECOND_WITHIN_S - 1)
    assert (cluster.replicas, cluster.partition, cluster.status.phase) == (2, 1, "Degraded")
    assert lack.message in progress(cluster)
    for _ in range(2):
        cluster.step()
    assert cluster.replicas == 1, "or it would take the place of the first"
    cluster.settings.pop()
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (1, 0)
    start(cluster, 0)
    cluster.step()
    assert (cluster.replicas, cluster.status.phase) == (1, "Ready")


@pytest.mark.parametrize("fault", [BAD_IMAGE, NO_CLAIM])
def test_an_only_engine_is_not_ended_for_a_spec_with_which_a_second_one_fails(fault: Failure) -> None:
    cluster = rolling()
    start(cluster, 1, ends=False)
    cluster.troubles[1] = fault
    for _ in range(3):
        cluster.step(2 * SECOND_WITHIN_S)
    assert (cluster.replicas, cluster.partition) == (2, 1)
    assert (cluster.status.phase, ready(cluster.status.conditions)[0]) == ("Degraded", "True")


def test_an_only_engine_restarts_at_once_if_it_may_not_have_a_second_or_answers_nobody() -> None:
    for cluster in (rolling(high=1), rolling(up=False)):
        cluster.step(31)
        assert (cluster.replicas, cluster.partition) == (1, 0)


def test_a_missed_heartbeat_does_not_remove_the_only_engine_that_answers() -> None:
    cluster = taken_over()
    cluster.step(SHRINK_AFTER_S)
    cluster.ready[1] = False
    for _ in range(3):
        cluster.step()
        assert cluster.replicas == 2
    cluster.ready[1] = True
    cluster.step()
    assert ready(cluster.status.conditions)[0] == "True"


def test_a_missed_heartbeat_does_not_make_the_only_engine_restart_alone() -> None:
    cluster = Cluster(low=1, high=2)
    cluster.waves = list(WAVES)
    cluster.step()
    cluster.settings = [newest(cluster)]
    cluster.step()
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.ready[0] = False
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (2, 1)


def test_the_only_engine_that_answers_stays_if_the_base_may_no_longer_have_two() -> None:
    cluster = taken_over()
    cluster.high = 1
    for _ in range(3):
        cluster.step(SHRINK_AFTER_S)
        assert cluster.replicas == 2
    start(cluster, 0)
    for _ in range(3):
        cluster.step()
    assert (cluster.replicas, cluster.status.phase) == (1, "Ready")


def test_a_second_engine_that_loses_its_place_gets_as_long_to_find_another() -> None:
    cluster = rolling()
    start(cluster, 1, ends=False)
    cluster.step(2 * SECOND_WITHIN_S)
    cluster.troubles[1] = NO_ROOM
    for after_s in (1.0, SECOND_WITHIN_S - 1):
        cluster.step(after_s)
        assert (cluster.replicas, cluster.partition) == (2, 1)
    cluster.troubles.clear()
    cluster.step()
    cluster.troubles[1] = NO_ROOM
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (2, 1), "it had room meanwhile"
    cluster.step(SECOND_WITHIN_S)
    cluster.step()
    assert cluster.replicas == 1


def test_traffic_that_comes_and_goes_does_not_put_off_a_restart_without_a_second_engine() -> None:
    cluster = rolling()
    start(cluster, 1, ends=False)
    cluster.troubles[1] = NO_ROOM
    for busy in (1, 2, 1):
        cluster.busy = busy
        cluster.step(0.9 * SECOND_WITHIN_S)
    cluster.step()
    assert cluster.replicas == 1


def test_an_engine_that_reports_while_another_pod_of_its_group_has_no_node_has_no_room() -> None:
    record = engine(1, ready=False).record
    of = Engine("smol-1", 1, record, pod=EnginePod("smol-1", "10.0.0.1", trouble=NO_ROOM))
    assert of.alive
    assert of.unplaced


def test_a_roll_that_waits_for_an_engine_without_room_says_how_it_can_go_on_without_that() -> None:
    cluster = Cluster(low=1, high=2)
    cluster.waves = [wave("one", [f"a/{index}" for index in range(6)])]
    cluster.step()
    cluster.settings = [newest(cluster)] * 2
    cluster.ready[1] = cluster.up[1] = False
    cluster.troubles[1] = NO_ROOM
    cluster.step()
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.step()
    cluster.settings[1] = newest(cluster)
    cluster.step()
    cluster.step(SECOND_WITHIN_S)
    hint = "smol-0 restarts once smol-1 is ready (or without that, with spec.engine.replicas.max: 1)"
    assert hint in progress(cluster)
    assert (cluster.replicas, cluster.partition) == (2, 1)
    cluster.high = 1
    cluster.step()
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (1, 0)


def test_an_excess_engine_that_lost_its_place_in_a_roll_goes_and_the_others_still_restart_one_by_one() -> None:
    cluster = Cluster(low=1, high=3)
    cluster.busy = 3
    cluster.step()
    cluster.settings = [newest(cluster)] * 3
    cluster.step()
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.busy = 1
    start(cluster, 2, ends=False)
    cluster.troubles[2] = NO_ROOM
    cluster.step()
    cluster.step(SECOND_WITHIN_S)
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (2, 1)
    cluster.settings.pop()
    start(cluster, 1)
    while cluster.partition:
        cluster.step()
    start(cluster, 0)
    for _ in range(3):
        cluster.step()
    assert (cluster.replicas, cluster.status.phase) == (1, "Ready")
