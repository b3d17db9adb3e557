"""Engines come at once and go late, and whatever goes or starts anew is replaced first."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.records import EngineView, MapChange, MapState, Tier
from mint_operator.planning.base_plan import Known
from mint_operator.planning.elastic import SHRINK_AFTER_S
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import BaseMap, Child, EnginePod, ObservedWave
from tests.operator.test_planner_replan import written
from tests.operator.worlds import KEY, NOW, base, engine, snapshot, wave


class Cluster:
    """A base of up to two engines of four slots; engines hold what they are asked to when told so."""

    def __init__(self, low: int = 1, settings: Sequence[str] = ()) -> None:
        self.now, self.low = NOW, low
        self.waves: list[ObservedWave] = []
        self.known: Mapping[str, Known] | None = None
        self.state = MapState(1, None, {}, {})
        self.replicas = 0
        self.partition = 0
        self.settings = list(settings)
        self.ready: list[bool] = [True] * 4
        self.obeys = True
        self.busy = 0
        self.holding: dict[str, dict[str, Tier]] = {}

    def views(self) -> list[EngineView]:
        return [
            engine(ordinal, self.held(ordinal), ready=self.ready[ordinal])
            for ordinal in range(self.replicas)
            if self.ready[ordinal]
        ]

    def held(self, ordinal: int) -> dict[str, Tier]:
        return self.holding.get(f"smol-{ordinal}", {})

    def step(self, after_s: float = 1.0) -> Plan:
        """Engines obey, time passes, and the operator plans and carries out."""
        if self.obeys:
            self.holding = {
                name: {each.adapter: each.residency for each in assigned.values()}
                for name, assigned in self.state.assigned.items()
                if self.ready[int(name.rpartition("-")[2])]
            }
        self.now += after_s
        of = snapshot(base(self.low, 2, slots=4), self.waves, self.views(), state=self.state, now=self.now)
        known = BaseMap(self.state, of.maps[KEY].engines, busy=self.busy)
        child = Child("StatefulSet", "team", "smol", replicas=self.replicas)
        pods = [EnginePod(f"smol-{n}", f"10.0.0.{n}", True, settings=each) for n, each in enumerate(self.settings)]
        children = {child.key: child} if self.replicas else {}
        of = msgspec.structs.replace(of, maps={KEY: known}, children=children, pods={KEY: tuple(pods)})
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
        cluster.ready = [True] * 4
        updated = range(cluster.partition, cluster.replicas)
        outdated = [ordinal for ordinal in updated if cluster.settings[ordinal] == "old"]
        if outdated:
            restarted.append(max(outdated))
            cluster.settings[restarted[-1]], cluster.ready[restarted[-1]], back_in = newest(cluster), False, 3
    return restarted


def newest(cluster: Cluster) -> str:
    """The digest that pods made now bear."""
    found = plan(snapshot(base(cluster.low, 2, slots=4), cluster.waves))
    [spec] = [manifest.body["spec"] for manifest in found.manifests if manifest.kind == "StatefulSet"]
    digest: str = spec["template"]["metadata"]["annotations"]["mint.dev/settings"]
    return digest
