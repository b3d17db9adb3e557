"""Engines come at once and go late, and whatever goes or starts anew is replaced first."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import pytest

from mint_contracts.records import EngineView, Failure, MapChange, MapState, Tier
from mint_contracts.resources import Residency
from mint_operator.planning.base_plan import Known
from mint_operator.planning.elastic import SHRINK_AFTER_S
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import BaseMap, Child, EnginePod, ObservedWave
from tests.operator.test_planner_replan import written
from tests.operator.worlds import KEY, NOW, RELEASE, base, engine, snapshot, wave

GONE = Failure("SourceNotFound", "holds nothing", terminal=True)
UNREACHABLE = Failure("SourceUnavailable", "storage did not answer", terminal=False)


class Cluster:
    """A base of up to `high` engines of four slots; engines hold what they are asked to when told so."""

    def __init__(self, low: int = 1, settings: Sequence[str] = (), high: int = 2) -> None:
        self.now, self.low, self.high = NOW, low, high
        self.uri = "pvc://models/smol"
        self.release = RELEASE
        self.waves: list[ObservedWave] = []
        self.known: Mapping[str, Known] | None = None
        self.state = MapState(1, None, {}, {})
        self.replicas = 0
        self.partition = 0
        self.settings = list(settings)
        self.ready: list[bool] = [True] * 8
        self.unheard_s = [0.0] * 8
        self.failures: dict[int, Failure] = {}  # of engines that cannot load their base
        self.refused: set[tuple[int, str]] = set()  # adapters that an engine will not load
        self.obeys = True
        self.busy = 0
        self.sizes: dict[str, Size] = {}
        self.holding: dict[str, dict[str, Tier]] = {}

    def views(self) -> list[EngineView]:
        return [
            engine(
                ordinal,
                self.held(ordinal),
                ready=ordinal not in self.failures,
                failure=self.failures.get(ordinal),
                failures={adapter: GONE for refuser, adapter in self.refused if refuser == ordinal},
            )
            for ordinal in range(self.replicas)
            if self.ready[ordinal]
        ]

    def held(self, ordinal: int) -> dict[str, Tier]:
        found = {} if ordinal in self.failures else self.holding.get(f"smol-{ordinal}", {})
        return {adapter: tier for adapter, tier in found.items() if (ordinal, adapter) not in self.refused}

    def step(self, after_s: float = 1.0) -> Plan:
        """Engines obey, time passes, and the operator plans and carries out."""
        if self.obeys:
            self.holding = {
                name: {each.adapter: each.residency for each in assigned.values()}
                for name, assigned in self.state.assigned.items()
                if self.ready[int(name.rpartition("-")[2])]
            }
        self.now += after_s
        of = snapshot(
            base(self.low, self.high, slots=4, uri=self.uri), self.waves, self.views(), state=self.state, now=self.now
        )
        self.unheard_s = [0.0 if ready else s + after_s for ready, s in zip(self.ready, self.unheard_s, strict=True)]
        away = {f"smol-{ordinal}": seconds for ordinal, seconds in enumerate(self.unheard_s) if seconds}
        known = BaseMap(self.state, of.maps[KEY].engines, away, sizes=self.sizes, busy=self.busy)
        child = Child("StatefulSet", "team", "smol", replicas=self.replicas)
        pods = [EnginePod(f"smol-{n}", f"10.0.0.{n}", True, settings=each) for n, each in enumerate(self.settings)]
        children = {child.key: child} if self.replicas else {}
        of = msgspec.structs.replace(of, maps={KEY: known}, children=children, pods={KEY: tuple(pods)})
        of = msgspec.structs.replace(of, release=self.release)
        found = plan(of, self.known)
        self.known = found.known
        self.state = written(self.state, found.changes.get(KEY, MapChange()))
        for manifest in found.manifests:
            if manifest.kind == "StatefulSet":
                spec: dict[str, Any] = manifest.body["spec"]
                self.replicas = spec["replicas"]
                self.partition = spec["updateStrategy"].get("rollingUpdate", {}).get("partition", 0)
        return found

    def homes(self) -> dict[str, list[str]]:
        return {name: [place.engine for place in each.places] for name, each in sorted(self.state.placements.items())}


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


def unmoved(cluster: Cluster) -> dict[str, list[str]]:
    """Where everything is after a few plans, and stays: as many engines run as that takes."""
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


def test_a_new_revision_rolls_through_one_engine_at_a_time_and_no_copy_is_missed() -> None:
    """An engine is away for a while, and Kubernetes, which goes on once it is back, sees that first."""
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
def test_what_the_installation_changes_rolls_through_as_carefully(changed: dict[str, Any]) -> None:
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
    """Nobody hears of them, so that nothing can be moved first; one that is back holds up no other."""
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


def test_a_rolling_update_does_not_wait_where_no_engine_runs() -> None:
    cluster = over_two()
    cluster.ready = [False] * 8
    cluster.settings = ["old", "old"]
    cluster.step()
    assert cluster.partition == 2, "their hearts may only have been missed"
    cluster.step(31)
    assert cluster.partition == 1


def test_what_an_engine_that_starts_anew_holds_goes_to_one_that_can_serve_it() -> None:
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
        f"2 of 2 engines ready; smol-1 starts anew once {name} is ready on smol-0",
    )
    cluster.obeys = True
    assert progressing(cluster) == ("True", "RollingUpdate", "2 of 2 engines ready; smol-1 starts anew")
    cluster.settings = [newest(cluster)] * 2
    assert progressing(cluster)[:2] == ("False", "Settled")


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


def in_excess() -> Cluster:
    """Two engines of an old revision that hold copies, of which one has just become enough."""
    cluster = Cluster(low=1)
    cluster.waves = [wave("one", ["a/0", "a/1", "a/2"]), wave("two", ["b/0", "b/1", "b/2"])]
    cluster.step()
    cluster.step()
    cluster.waves = cluster.waves[:1]
    cluster.step()
    assert {home for homes in cluster.homes().values() for home in homes} == {"smol-0", "smol-1"}
    cluster.settings = ["old", "old"]
    return cluster


def over_two() -> Cluster:
    """Two engines, and a wave of which each holds an adapter."""
    cluster = Cluster(low=2)
    cluster.waves = [wave("one", ["a/0", "a/1"])]
    cluster.step()
    cluster.step()
    assert sorted(chain(*cluster.homes().values())) == ["smol-0", "smol-1"]
    return cluster


def restarted(cluster: Cluster) -> list[int]:
    """The engines that started anew, in order; one that was away is back with that."""
    found = []
    for _ in range(8):
        cluster.step()
        outdated = [n for n in range(cluster.partition, cluster.replicas) if cluster.settings[n] != newest(cluster)]
        if outdated:
            found.append(max(outdated))
            cluster.settings[found[-1]], cluster.ready[found[-1]] = newest(cluster), True
    return found


def progressing(cluster: Cluster) -> tuple[str, str, str]:
    status = cluster.step().base_statuses[KEY]
    [found] = [each for each in status.conditions if each.type == "Progressing"]
    return found.status, found.reason, found.message


def rolled(cluster: Cluster) -> list[int]:
    """The engines that started anew, in order, while every copy was held all the time."""
    restarted: list[int] = []
    back_in = 0
    for _ in range(20):
        cluster.step()
        for name, homes in cluster.homes().items():
            alive = [f"smol-{ordinal}" for ordinal in range(2) if cluster.ready[ordinal]]
            held = [each for each in homes if each in alive and name in cluster.holding.get(each, {})]
            assert held, f"nobody answers for {name}"
        back_in -= 1
        if back_in > 0:
            continue
        cluster.ready = [True] * 8
        updated = range(cluster.partition, cluster.replicas)
        outdated = [ordinal for ordinal in updated if cluster.settings[ordinal] != newest(cluster)]
        if outdated:
            restarted.append(max(outdated))
            cluster.settings[restarted[-1]], cluster.ready[restarted[-1]], back_in = newest(cluster), False, 3
    return restarted


def newest(cluster: Cluster) -> str:
    """The digest that pods made now bear."""
    of = snapshot(base(cluster.low, cluster.high, slots=4, uri=cluster.uri), cluster.waves)
    found = plan(msgspec.structs.replace(of, release=cluster.release))
    [spec] = [manifest.body["spec"] for manifest in found.manifests if manifest.kind == "StatefulSet"]
    digest: str = spec["template"]["metadata"]["annotations"]["mint.dev/settings"]
    return digest
