"""A base whose engines restart with a new spec says so: Rolling, not Degraded, unless something else is wrong."""

from typing import Any

import msgspec
import pytest

from mint_contracts.resources import BaseModelStatus
from tests.operator.clusters import UNREACHABLE, Cluster, newest, over_two
from tests.operator.statuses import ready, reconciling
from tests.operator.worlds import KEY, wave


def rolling(low: int = 2) -> Cluster:
    """Return a base of `low` engines, and no more, up to date and ready, whose image has just changed."""
    cluster = over_two() if low == 2 else Cluster(low=low, high=low)
    cluster.step()
    cluster.settings = [newest(cluster)] * low
    cluster.step()
    assert cluster.status.phase == "Ready"
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.step()
    return cluster


def told(status: BaseModelStatus, kind: str = "Ready") -> str:
    return next(each.message for each in status.conditions if each.type == kind)


def restart(cluster: Cluster, ordinal: int, *, ends: bool = True) -> None:
    """Replace an engine's pod by one with the latest settings; it is ready once `ends`."""
    cluster.settings[ordinal], cluster.up[ordinal], cluster.ready[ordinal] = newest(cluster), ends, ends


def test_a_roll_over_two_engines_is_told_from_its_begin_to_its_end() -> None:
    cluster = rolling()
    seen = []
    for ordinal in (1, 0):
        while cluster.partition > ordinal:
            cluster.step()
        seen.append(cluster.status)
        restart(cluster, ordinal, ends=False)
        cluster.step()
        seen.append(cluster.status)
        restart(cluster, ordinal)
    assert [each.phase for each in seen] == ["Rolling"] * 4
    assert [ready(each.conditions)[0] for each in seen] == ["True"] * 4, "one answers at any time"
    assert [ready(each.conditions, "Progressing") for each in seen] == [("True", "RollingUpdate")] * 4
    assert [reconciling(each) for each in seen] == ["RollingUpdate"] * 4
    counted = [told(each, "Progressing").partition(";")[0] for each in seen]
    assert counted == [
        "0 of 2 engines updated, 2 ready",
        "1 of 2 engines updated, 1 ready",
        "1 of 2 engines updated, 2 ready",
        "2 of 2 engines updated, 1 ready",
    ]
    assert told(seen[1]) == "1 of 2 engines ready, 2 needed; restarting with the latest spec: smol-1"
    cluster.step()
    assert (cluster.status.phase, reconciling(cluster.status)) == ("Ready", "")
    assert ready(cluster.status.conditions, "Progressing") == ("False", "Settled")


def test_a_pod_that_is_gone_does_not_end_the_roll() -> None:
    """Its heartbeat outlives it by a moment, in which all engines seem ready."""
    cluster = rolling()
    while cluster.partition > 0:
        if cluster.partition == 1:
            restart(cluster, 1)
        cluster.step()
    cluster.settings[0] = ""
    cluster.step()
    assert (cluster.status.phase, cluster.status.engines.ready) == ("Rolling", 2)


def test_an_engine_that_restarts_alone_is_told_with_what_would_help() -> None:
    cluster = rolling(low=1)
    assert (cluster.status.phase, ready(cluster.status.conditions)) == ("Rolling", ("True", "EnginesReady"))
    restart(cluster, 0, ends=False)
    cluster.step()
    assert (cluster.status.phase, ready(cluster.status.conditions)) == ("Rolling", ("False", "RollingUpdate"))
    assert told(cluster.status) == (
        "0 of 1 engines ready, 1 needed; restarting with the latest spec: smol-0; no other engine can answer "
        "meanwhile (with spec.engine.replicas.max: 2, a second one takes over first)"
    )
    restart(cluster, 0)
    cluster.step()
    assert cluster.status.phase == "Ready"


def failing(cluster: Cluster) -> None:
    """Let the new engine fail."""
    restart(cluster, 1)
    cluster.failures[1] = UNREACHABLE


def another_away(cluster: Cluster) -> None:
    """Let the one that was not to restart yet fall silent."""
    restart(cluster, 1)
    cluster.up[0] = cluster.ready[0] = False


def silent(cluster: Cluster) -> None:
    """Let the new engine not reach Redis."""
    restart(cluster, 1)
    cluster.ready[1] = False


def both_away(cluster: Cluster) -> None:
    restart(cluster, 1, ends=False)
    cluster.up[0] = cluster.ready[0] = False


@pytest.mark.parametrize("mishap", [failing, another_away, silent, both_away])
def test_a_roll_in_which_something_is_wrong_is_degraded(mishap: Any) -> None:
    cluster = rolling()
    while cluster.partition > 1:
        cluster.step()
    mishap(cluster)
    cluster.step()
    assert (cluster.status.phase, ready(cluster.status.conditions)[0]) == ("Degraded", "False")
    assert reconciling(cluster.status) == "RollingUpdate"
    cluster.failures, cluster.ready, cluster.up = {}, [True] * 8, [True] * 8
    cluster.step()
    assert cluster.status.phase == "Rolling"


def test_a_roll_that_fails_is_degraded_although_enough_engines_answer() -> None:
    cluster = Cluster(low=1)
    cluster.waves = [wave("one", ["a/0", "a/1", "a/2"]), wave("two", ["b/0", "b/1", "b/2"])]
    for _ in range(2):
        cluster.step()
    cluster.settings = [newest(cluster)] * 2
    cluster.step()
    cluster.release = msgspec.structs.replace(cluster.release, image="mint.dev/host:newer")
    cluster.step()
    failing(cluster)
    cluster.step()
    assert (cluster.status.phase, ready(cluster.status.conditions)[0]) == ("Degraded", "True")


def test_an_engine_that_is_away_without_a_roll_is_degraded() -> None:
    cluster = over_two()
    cluster.settings = [newest(cluster)] * 2
    cluster.step()
    cluster.ready[1] = False
    assert cluster.step().base_statuses[KEY].phase == "Degraded"
