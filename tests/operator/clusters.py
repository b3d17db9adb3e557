"""A base whose engines come, go and restart, plan by plan."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from mint_contracts.records import EngineView, Failure, MapChange, MapState, Tier
from mint_contracts.resources import BaseModelStatus
from mint_operator.planning.base_plan import Known
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import BaseMap, Child, EnginePod, ObservedWave
from tests.operator.worlds import KEY, NOW, RELEASE, base, engine, snapshot, wave, written

GONE = Failure("SourceNotFound", "holds nothing", terminal=True)
UNREACHABLE = Failure("SourceUnavailable", "storage did not answer", terminal=False)


class Cluster:
    """A base of up to `high` engines with four slots; engines hold their assignments while `obeys` is set."""

    def __init__(self, low: int = 1, settings: Sequence[str] = (), high: int = 2) -> None:
        self.now, self.low, self.high = NOW, low, high
        self.uri = "pvc://models/smol"
        self.release = RELEASE
        self.waves: list[ObservedWave] = []
        self.known: Mapping[str, Known] | None = None
        self.status = BaseModelStatus()
        self.state = MapState(1, None, {}, {})
        self.replicas = 0
        self.partition = 0
        self.settings = list(settings)
        self.ready: list[bool] = [True] * 8
        self.up: list[bool] = [True] * 8  # by the pods' own conditions
        self.unheard_s = [0.0] * 8
        self.failures: dict[int, Failure] = {}  # of engines that cannot load their base
        self.troubles: dict[int, Failure] = {}  # of their pods
        self.refused: set[tuple[int, str]] = set()  # adapters that an engine refuses to load
        self.refusal = GONE
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
                failures={adapter: self.refusal for refuser, adapter in self.refused if refuser == ordinal},
            )
            for ordinal in range(self.replicas)
            if self.ready[ordinal]
        ]

    def held(self, ordinal: int) -> dict[str, Tier]:
        found = {} if ordinal in self.failures else self.holding.get(f"smol-{ordinal}", {})
        return {adapter: tier for adapter, tier in found.items() if (ordinal, adapter) not in self.refused}

    def step(self, after_s: float = 1.0) -> Plan:
        """Let engines obey and time pass, then plan and carry the plan out."""
        if self.obeys:
            self.holding = {
                name: {each.adapter: each.residency for each in assigned.values()}
                for name, assigned in self.state.assigned.items()
                if self.ready[int(name.rpartition("-")[2])]
            }
        self.now += after_s
        there = base(self.low, self.high, slots=4, uri=self.uri, status=self.status)
        of = snapshot(there, self.waves, self.views(), state=self.state, now=self.now)
        self.unheard_s = [0.0 if ready else s + after_s for ready, s in zip(self.ready, self.unheard_s, strict=True)]
        away = {f"smol-{ordinal}": seconds for ordinal, seconds in enumerate(self.unheard_s) if seconds}
        known = BaseMap(self.state, of.maps[KEY].engines, away, sizes=self.sizes, busy=self.busy)
        child = Child("StatefulSet", "team", "smol", replicas=self.replicas)
        pods = [
            EnginePod(f"smol-{n}", f"10.0.0.{n}", self.up[n], trouble=self.troubles.get(n), settings=each)
            for n, each in enumerate(self.settings)
        ]
        children = {child.key: child} if self.replicas else {}
        of = msgspec.structs.replace(of, maps={KEY: known}, children=children, pods={KEY: tuple(pods)})
        of = msgspec.structs.replace(of, release=self.release)
        found = plan(of, self.known)
        self.known, self.status = found.known, found.base_statuses[KEY]
        self.state = written(self.state, found.changes.get(KEY, MapChange()))
        for manifest in found.manifests:
            if manifest.kind == "StatefulSet":
                spec: dict[str, Any] = manifest.body["spec"]
                self.replicas = spec["replicas"]
                self.partition = spec["updateStrategy"].get("rollingUpdate", {}).get("partition", 0)
        return found

    def homes(self) -> dict[str, list[str]]:
        return {name: [place.engine for place in each.places] for name, each in sorted(self.state.placements.items())}


def in_excess() -> Cluster:
    """Return two engines with old settings that both hold copies, just when one engine has become enough."""
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
    """Return two engines, and a wave with one adapter on each."""
    cluster = Cluster(low=2)
    cluster.waves = [wave("one", ["a/0", "a/1"])]
    cluster.step()
    cluster.step()
    assert sorted(chain(*cluster.homes().values())) == ["smol-0", "smol-1"]
    return cluster


def restarted(cluster: Cluster) -> list[int]:
    """Roll until nothing is outdated; return the restarted engines in order. A restarted engine becomes ready."""
    found = []
    for _ in range(8):
        cluster.step()
        outdated = [n for n in range(cluster.partition, cluster.replicas) if cluster.settings[n] != newest(cluster)]
        if outdated:
            found.append(max(outdated))
            cluster.settings[found[-1]], cluster.ready[found[-1]] = newest(cluster), True
    return found


def rolled(cluster: Cluster) -> list[int]:
    """Return the restarted engines in order, checking that every adapter is held at all times."""
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
    """Return the settings digest of pods that are created now."""
    of = snapshot(base(cluster.low, cluster.high, slots=4, uri=cluster.uri), cluster.waves)
    found = plan(msgspec.structs.replace(of, release=cluster.release))
    [spec] = [manifest.body["spec"] for manifest in found.manifests if manifest.kind == "StatefulSet"]
    digest: str = spec["template"]["metadata"]["annotations"]["mint.dev/settings"]
    return digest
