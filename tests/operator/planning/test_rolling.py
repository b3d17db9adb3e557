"""Engines restart one at a time, and their copies are held elsewhere first."""

from itertools import chain
from typing import Any

import msgspec
import pytest

from mint_contracts.resources import Condition
from mint_operator.planning.elastic import PATIENCE_S, SHRINK_AFTER_S
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import Child, EnginePod
from tests.operator.clusters import UNREACHABLE, Cluster, in_excess, newest, over_two, restarted, rolled
from tests.operator.worlds import KEY, RELEASE, base, snapshot, wave


def test_a_new_revision_rolls_through_one_engine_at_a_time_and_no_copy_is_missed() -> None:
    """A restarting engine is away for a while; Kubernetes notices its return before the operator, and continues."""
    cluster = Cluster(low=2, settings=["old", "old"])
    cluster.waves = [wave("one", ["a/0", "a/1"])]
    cluster.step()
    assert rolled(cluster) == [1, 0]
    assert cluster.partition == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"redis_digest": "of another password"},
        {"redis_password": "hush", "redis_digest": "of the first password"},
        {"redis_ca": "PEM", "redis_digest": "of a CA"},
        {"image": "mint.dev/host:newer"},
        {"runtime_class": "mint-host"},
        {"pull_secrets": ("hub",)},
    ],
)
def test_changes_of_the_installation_roll_through_as_carefully(changed: dict[str, Any]) -> None:
    cluster = Cluster(low=2)
    cluster.waves = [wave("one", ["a/0", "a/1"])]
    cluster.step()
    cluster.settings = [newest(cluster)] * 2
    cluster.step()
    assert cluster.partition == 0
    cluster.release = msgspec.structs.replace(RELEASE, **changed)
    assert rolled(cluster) == [1, 0]
    assert cluster.partition == 0


def test_engines_that_cannot_reach_redis_with_its_old_password_start_anew_with_the_new_one() -> None:
    """They cannot report, so nothing can be moved first; an engine that is back does not delay the others."""
    cluster = over_two()
    cluster.settings = [newest(cluster)] * 2
    cluster.ready = [False] * 8
    cluster.release = msgspec.structs.replace(RELEASE, redis_digest="of another password")
    cluster.step()
    assert cluster.partition == 2, "their hearts may only have been missed"
    cluster.step(31)
    assert restarted(cluster) == [1, 0]


def test_engines_that_are_not_needed_any_more_start_anew_only_once_their_copies_are_elsewhere() -> None:
    cluster = in_excess()
    assert rolled(cluster) == [1, 0]
    assert cluster.replicas == 2, "it may still be needed again"


def test_engines_that_are_not_needed_any_more_go_only_once_those_that_are_have_started_anew() -> None:
    cluster = in_excess()
    cluster.step(SHRINK_AFTER_S)
    assert rolled(cluster) == [1, 0]
    cluster.step(SHRINK_AFTER_S)
    cluster.step()
    assert (cluster.replicas, cluster.homes()["a/0"]) == (1, ["smol-0"])


def test_an_engine_that_may_go_stays_while_one_that_is_needed_makes_room_to_start_anew() -> None:
    cluster = in_excess()
    cluster.settings = ["old", newest(cluster)]
    cluster.step()
    cluster.obeys = False  # the new copies take their time
    cluster.step(SHRINK_AFTER_S)
    cluster.step()
    assert (cluster.replicas, cluster.partition) == (2, 1), "nothing starts anew that is not replaced"
    cluster.obeys = True
    cluster.step()
    assert cluster.homes() == {name: ["smol-1"] for name in ["a/0", "a/1", "a/2"]}
    assert (cluster.replicas, cluster.partition) == (2, 0)


def test_a_rolling_update_does_not_wait_for_copies_on_an_engine_that_is_lost() -> None:
    cluster = over_two()
    cluster.ready[0] = False
    cluster.step(31)
    assert set(chain(*cluster.homes().values())) == {"smol-1"}
    cluster.settings = ["old", "old"]
    assert restarted(cluster) == [1, 0], "the mended spec reaches the engine that needs it"


def test_a_rolling_update_does_not_wait_for_copies_on_an_engine_that_cannot_load_its_base() -> None:
    cluster = over_two()
    cluster.failures[0] = UNREACHABLE
    cluster.settings = ["old", "old"]
    assert restarted(cluster) == [1, 0]


def test_a_rolling_update_does_not_wait_for_an_adapter_that_nobody_else_can_load() -> None:
    cluster = over_two()
    cluster.refused = {(0, name) for name, homes in cluster.homes().items() if homes == ["smol-1"]}
    assert cluster.refused
    cluster.settings = ["old", "old"]
    assert restarted(cluster) == [1, 0]


def test_a_rolling_update_waits_a_while_for_adapters_that_cannot_be_loaded_elsewhere_for_now() -> None:
    cluster = over_two()
    [only] = [name for name, homes in cluster.homes().items() if homes == ["smol-1"]]
    cluster.refused, cluster.refusal = {(0, only)}, UNREACHABLE
    cluster.settings = ["old", "old"]
    assert restarted(cluster) == []
    cluster.step(-86_400.0)
    cluster.step(PATIENCE_S - 1)
    assert cluster.partition == 2, "the clock was put back, and the while with it"
    cluster.step()
    assert restarted(cluster) == [1, 0]


def test_each_engine_of_a_rolling_update_waits_a_while_of_its_own() -> None:
    cluster = over_two()
    homes = {engine: name for name, [engine] in cluster.homes().items()}
    cluster.refused, cluster.refusal = {(0, homes["smol-1"]), (1, homes["smol-0"])}, UNREACHABLE
    cluster.settings = ["old", "old"]
    cluster.step()
    cluster.step(PATIENCE_S)
    assert restarted(cluster) == [1]
    assert restarted(cluster) == []
    cluster.step(PATIENCE_S)
    assert restarted(cluster) == [0]


def test_a_rolling_update_waits_for_copies_that_are_on_their_way_however_long() -> None:
    cluster = over_two()
    cluster.obeys = False  # the new copies take their time
    cluster.settings = ["old", "old"]
    cluster.step()
    cluster.step(10 * PATIENCE_S)
    assert restarted(cluster) == []
    cluster.obeys = True
    assert restarted(cluster) == [1, 0]


def test_a_rolling_update_does_not_wait_where_no_engine_runs() -> None:
    cluster = over_two()
    cluster.ready = [False] * 8
    cluster.settings = ["old", "old"]
    cluster.step()
    assert cluster.partition == 2, "their hearts may only have been missed"
    cluster.step(31)
    assert cluster.partition == 1


def test_adapters_of_a_restarting_engine_go_to_one_that_can_serve_them() -> None:
    cluster = Cluster(low=3, high=3)
    cluster.waves = [wave("one", ["a"], engines=[2]), wave("two", ["b"], engines=[1])]
    cluster.step()
    cluster.waves[0] = wave("one", ["a"])
    cluster.failures[0] = UNREACHABLE
    cluster.settings = ["old"] * 3
    cluster.step()
    assert cluster.homes()["a"] == ["smol-2", "smol-1"], "although nothing else is on smol-0"
    assert cluster.partition == 3


def test_a_base_says_what_its_rolling_update_waits_for() -> None:
    cluster = over_two()
    cluster.settings = ["old", "old"]
    [name] = [name for name, homes in cluster.homes().items() if homes == ["smol-1"]]
    cluster.obeys = False  # the new copy takes its time
    assert progressing(cluster) == (
        "True",
        "RollingUpdate",
        f"0 of 2 engines updated, 2 ready; smol-1 restarts once {name} is ready on smol-0",
    )
    cluster.obeys = True
    assert progressing(cluster) == ("True", "RollingUpdate", "0 of 2 engines updated, 2 ready; smol-1 restarts")
    [reconciling] = told(cluster, "Reconciling")
    assert (reconciling.status, reconciling.reason) == ("True", "RollingUpdate"), "by which GitOps tools wait"
    assert reconciling.message == "smol-1 restarts"
    cluster.settings = [newest(cluster)] * 2
    assert progressing(cluster)[:2] == ("False", "Settled")
    assert told(cluster, "Reconciling") == []


def test_no_copy_moves_over_a_base_whose_spec_is_refused() -> None:
    cluster = Cluster(low=2)
    cluster.waves = [wave("one", ["a/0", "a/1", "a/2"])]
    cluster.step()
    cluster.settings = [newest(cluster)] * 2
    cluster.step()
    before = cluster.homes()
    cluster.uri = "ftp://host/smol"
    for _ in range(3):
        cluster.step()
    assert cluster.homes() == before


def test_no_engine_starts_anew_while_the_map_is_not_known_however_few_are_needed() -> None:
    of = snapshot(base(1, 4, slots=4), redis_ok=False)
    child = Child("StatefulSet", "team", "smol", replicas=4)
    pods = tuple(EnginePod(f"smol-{ordinal}", f"10.0.0.{ordinal}", True, settings="old") for ordinal in range(4))
    found = plan(msgspec.structs.replace(of, children={child.key: child}, pods={KEY: pods}))
    [spec] = [manifest.body["spec"] for manifest in found.manifests if manifest.kind == "StatefulSet"]
    assert (spec["replicas"], spec["updateStrategy"]["rollingUpdate"]["partition"]) == (4, 4)


def progressing(cluster: Cluster) -> tuple[str, str, str]:
    [found] = told(cluster, "Progressing")
    return found.status, found.reason, found.message


def told(cluster: Cluster, kind: str) -> list[Condition]:
    return [each for each in cluster.step().base_statuses[KEY].conditions if each.type == kind]
