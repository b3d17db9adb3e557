"""A week replayed in simulated time: waves come and go, traffic is skewed, engines die and come back.

Invariants: nothing is Ready that no engine holds, nothing is over capacity, no wave starves behind later ones, and
copies move only because an engine went away, or where they give way to those of an engine that did.
"""

import random
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from mint_contracts.records import EngineView, MapChange, MapState, Tier
from mint_operator.planning.base_plan import Known
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import BaseMap, Child, ObservedWave
from tests.operator.worlds import KEY, NOW, base, engine, engines_of, snapshot, wave, written

ENGINES, SLOTS = 12, 8
STEP_S = 600.0
STEPS = 7 * 24 * 6
CATALOG = 5_000
LOADS_A_STEP = 5  # copies that one engine loads in one step: some are always under way
PRIORITIES = (0, 0, 0, 5)
BASE = base(2, ENGINES, SLOTS)


class Week:
    """The simulated world, advanced step by step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = NOW
        self.made = 0
        self.waves: dict[str, ObservedWave] = {}
        self.ends: dict[str, float] = {}
        self.dead: dict[int, float] = {}  # engine -> when it is back
        self.holding: dict[int, dict[str, Tier]] = {ordinal: {} for ordinal in range(ENGINES)}
        self.state = MapState(1, None, {}, {})
        self.known: Mapping[str, Known] | None = None
        self.replicas = 0
        self.moved = self.displaced = self.gave_way = 0

    def step(self) -> Plan:
        """Let ten minutes pass, then plan and write the plan."""
        self.now += STEP_S
        self._waves_come_and_go()
        self._engines_die_and_come_back()
        self._engines_load()
        views = self.views()
        of = snapshot(BASE, list(self.waves.values()), views, state=self.state, now=self.now)
        away = {f"smol-{ordinal}": STEP_S for ordinal in self.dead}
        known = BaseMap(self.state, of.maps[KEY].engines, away_s=away, busy=self._busy())
        child = Child("StatefulSet", "team", "smol", replicas=self.replicas)
        of = msgspec.structs.replace(of, maps={KEY: known}, children={child.key: child} if self.replicas else {})
        found = plan(of, self.known)
        self._count_moves(found)
        self.known = found.known
        self.state = written(self.state, found.changes.get(KEY, MapChange()))
        self.waves = {
            key: msgspec.structs.replace(each, status=found.wave_statuses[each.meta.key])
            for key, each in self.waves.items()
        }
        for manifest in found.manifests:
            if manifest.kind == "StatefulSet":
                self.replicas = manifest.body["spec"]["replicas"]
        return found

    def views(self) -> list[EngineView]:
        return [
            engine(ordinal, self.holding[ordinal], alive=ordinal not in self.dead) for ordinal in range(self.replicas)
        ]

    def _waves_come_and_go(self) -> None:
        for name in [name for name, end in self.ends.items() if end <= self.now]:
            del self.waves[name], self.ends[name]
        for _ in range(self.random.choice([0, 0, 1, 1, 2])):
            self.made += 1
            name = f"w{self.made:05d}"
            first, size = self._popular(), self.random.randint(1, 24)
            self.waves[name] = wave(
                name,
                [f"a/{(first + index * 7) % CATALOG}" for index in range(size)],
                replicas=self.random.choice([1, 1, 1, 2]),
                priority=self.random.choice(PRIORITIES),
                created=datetime.fromtimestamp(self.made, UTC).isoformat(),  # in the order of arrival
            )
            self.ends[name] = self.now + self.random.expovariate(1 / 14_400)

    def _popular(self) -> int:
        """Draw an adapter by Zipf's law: most waves ask for few adapters."""
        return int(CATALOG ** self.random.random()) - 1

    def _busy(self) -> int:
        """Return the number of engines that traffic fills: more by day than by night."""
        hour = (self.now / 3600) % 24
        return 3 + (4 if 8 < hour < 20 else 0)

    def _engines_die_and_come_back(self) -> None:
        for ordinal in [ordinal for ordinal, back in self.dead.items() if back <= self.now]:
            del self.dead[ordinal]
            self.holding[ordinal] = {}
        if self.random.random() < 0.02 and not self.dead:
            self.dead[self.random.randrange(ENGINES)] = self.now + self.random.uniform(600, 7200)

    def _engines_load(self) -> None:
        """Let engines load their assignments, LOADS_A_STEP copies per step."""
        for ordinal, held in self.holding.items():
            wanted = {} if ordinal in self.dead else self.state.assigned.get(f"smol-{ordinal}", {})
            for name in [name for name in held if name not in wanted]:
                del held[name]
            for name in [name for name in wanted if name not in held][:LOADS_A_STEP]:
                held[name] = wanted[name].residency

    def _count_moves(self, found: Plan) -> None:
        """Count copies that left an engine although still wanted, and copies whose engine was lost or is leaving.

        Copies that gave way to some of higher priority, of a lost engine, are counted by themselves.
        """
        fleet = found.known[KEY].fleet
        going = {f"smol-{ordinal}" for ordinal in {*fleet.leaving, *self.dead, *range(fleet.count, ENGINES)}}
        placed = found.known[KEY].placed
        assert placed is not None
        for name, before in self.state.placements.items():
            after = placed.records.get(name)
            if after is None:
                continue
            left = engines_of(before) - engines_of(after)
            fewer = max(0, len(before.places) - len(after.places))  # replicas that are not wanted any more
            new = [place for place in after.places if place.engine not in engines_of(before)]
            gave_way = sum("a copy of higher priority" in place.why for place in new)
            self.gave_way += gave_way
            self.displaced += len(left & going)
            self.moved += max(0, len(left) - fewer - gave_way)


def test_a_week_of_waves_traffic_and_deaths() -> None:
    week, seen = Week(seed=20260101), Counter[str]()
    for _ in range(STEPS):
        found = week.step()
        no_adapter_is_ready_that_no_engine_holds(week, found)
        nothing_is_over_capacity(week)
        nobody_starves(week, found)
        seen.update(status.phase for status in found.wave_statuses.values())
    assert week.moved <= 1.05 * week.displaced + 1, "copies move only because an engine went"
    assert week.displaced > 100, "engines did go"
    assert 0 < week.gave_way <= week.displaced
    assert min(seen["Ready"], seen["Placing"], seen["Pending"], seen["Degraded"]) > 50, seen


def no_adapter_is_ready_that_no_engine_holds(week: Week, found: Plan) -> None:
    held = Counter(
        name for ordinal in range(week.replicas) if ordinal not in week.dead for name in week.holding[ordinal]
    )
    for each in week.waves.values():
        if found.wave_statuses[each.meta.key].phase == "Ready":
            assert all(held[name] >= each.spec.serve.replicas for name in each.spec.adapters.names)


def nothing_is_over_capacity(week: Week) -> None:
    for assigned in week.state.assigned.values():
        assert sum(each.residency is Tier.DEVICE for each in assigned.values()) <= SLOTS


def nobody_starves(week: Week, found: Plan) -> None:
    """Check, against a naive computation, that a wave waits only for waves whose turn comes before its own."""
    wanted: dict[str, int] = {}
    admitted = set()
    for each in sorted(week.waves.values(), key=lambda each: (-each.spec.priority, each.meta.created)):
        names = each.spec.adapters.names
        merged = wanted | {name: max(each.spec.serve.replicas, wanted.get(name, 0)) for name in names}
        if sum(merged.values()) <= ENGINES * SLOTS:
            wanted = merged
            admitted.add(each.meta.key)
    assert set(found.known[KEY].admission.turns) == admitted
