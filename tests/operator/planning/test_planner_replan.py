"""Planning from the last plan gives the same as planning from scratch, whatever happened between the two."""

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import Assignment, MapChange, MapState, Tier
from mint_contracts.resources import Tenant
from mint_operator.planning.base_plan import Known
from mint_operator.planning.conditions import stamp
from mint_operator.planning.plan import plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import BaseMap, ObservedBase, Snapshot
from tests.operator.drawn_worlds import NAMES, RESIDENCIES
from tests.operator.instructions import instructions
from tests.operator.worlds import KEY, NOW, base, engine, snapshot, unread, wave, written

KINDS = ["wave", "wave", "gone", "unread", "engine", "lost", "size", "bounds", "demand", "time", "nothing"]
SLOTS = 3
TENANTS = [[], [Tenant("other")], [Tenant("team", 2), Tenant("other", 3, 4, max_priority=0)]]
DAYS = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", stamp(NOW - 60)]
TTLS = ["", "", "30s", "90s", "3m"]
STEP_S = 60.0


@st.composite
def wave_of(draw: st.DrawFn, index: int) -> Any:
    return wave(
        f"w{index}",
        draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)),
        replicas=draw(st.sampled_from([1, 1, 2, 3])),
        residency=draw(st.sampled_from(RESIDENCIES)),
        priority=draw(st.integers(-1, 1)),
        engines=draw(st.sampled_from([(), (), (), (0,), (0, 1, 2)])),
        namespace=draw(st.sampled_from(["team", "team", "other"])),
        created=draw(st.sampled_from(DAYS)),
        ttl=draw(st.sampled_from(TTLS)),
    )


@st.composite
def base_of(draw: st.DrawFn, slots: int) -> ObservedBase:
    of = base(1, draw(st.integers(1, 3)), slots)
    tenants = draw(st.sampled_from(TENANTS))
    return msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, tenants=tenants))


class World:
    """A world that changes step by step."""

    def __init__(self, draw: st.DataObject) -> None:
        self.draw = draw
        self.now = NOW
        self.base = draw.draw(base_of(SLOTS))
        self.waves: dict[int, Any] = {}
        self.views = {ordinal: engine(ordinal) for ordinal in range(3)}
        self.away: dict[str, float] = {}
        self.sizes: Mapping[str, Size] = {}
        self.demand: dict[str, float] = {}
        self.state = MapState(1, None, {}, {})

    def step(self) -> None:
        """Let one random event happen."""
        kind = self.draw.draw(st.sampled_from(KINDS))
        index = self.draw.draw(st.integers(0, 4))
        if kind == "wave":
            self.waves[index] = self.draw.draw(wave_of(index))
        elif kind == "gone":
            self.waves.pop(index, None)
        elif kind == "unread" and index in self.waves:
            self.waves[index] = unread(self.waves[index], self.draw.draw(st.sampled_from(["smol", ""])))
        elif kind == "engine":
            held = {name: self.draw.draw(st.sampled_from(Tier)) for name in NAMES[: index + 1]}
            rate = self.draw.draw(st.sampled_from([0.0, 0.5, 4.0]))
            ready = self.draw.draw(st.booleans())
            trains = self.draw.draw(st.sampled_from([0, 0, 1 << 19]))
            self.views[index % 3] = engine(index % 3, held, ready=ready, loads_per_s=rate, training_bytes=trains)
            self.away.pop(f"smol-{index % 3}", None)
        elif kind == "lost":
            self.views[index % 3] = engine(index % 3, alive=False)
            self.away[f"smol-{index % 3}"] = self.draw.draw(st.sampled_from([1.0, 100.0]))
        elif kind == "size":
            name = self.draw.draw(st.sampled_from(NAMES))
            size = Size(self.draw.draw(st.integers(1, 64)), self.draw.draw(st.sampled_from([0, 1 << 18, 1 << 20])))
            self.sizes = {**self.sizes, name: size}
        elif kind == "demand":
            self.demand[NAMES[index]] = self.draw.draw(st.sampled_from([0.0, 0.5, 16.0, 32.0, 45.0, 90.0]))
        elif kind == "time":
            self.now += STEP_S
        elif kind == "bounds":
            self.base = self.draw.draw(base_of(self.draw.draw(st.sampled_from([1, SLOTS]))))

    def seen(self) -> Snapshot:
        """Return what the operator observes now."""
        of = snapshot(self.base, list(self.waves.values()), list(self.views.values()), state=self.state, now=self.now)
        known = BaseMap(self.state, of.maps[KEY].engines, dict(self.away), {}, self.sizes, demand=dict(self.demand))
        return msgspec.structs.replace(of, maps={KEY: known})


@given(st.data())
@settings(max_examples=300)
def test_planning_from_the_last_plan_gives_what_planning_from_nothing_gives(data: st.DataObject) -> None:
    world = World(data)
    known: Mapping[str, Known] | None = None
    for _ in range(data.draw(st.integers(2, 8))):
        world.step()
        of = world.seen()
        going_on, from_nothing = plan(of, known), plan(of)
        assert instructions(going_on) == instructions(from_nothing)
        known = going_on.known
        if data.draw(st.sampled_from([True, True, False])):  # else the write failed
            world.state = written(world.state, going_on.changes.get(KEY, MapChange()))
            wanted = turned_around(world.state)
            assert placed_of(world.state) == wanted


def placed_of(state: MapState) -> dict[str, dict[str, Assignment]]:
    """Return what engines must hold, without adapters that are loaded ahead."""
    found = {
        name: {adapter: each for adapter, each in of.items() if not each.ahead} for name, of in state.assigned.items()
    }
    return {name: of for name, of in found.items() if of}


def turned_around(state: MapState) -> dict[str, dict[str, Assignment]]:
    """Group the placements by engine, naively."""
    found: dict[str, dict[str, Assignment]] = {}
    for name, placement in state.placements.items():
        for place in placement.places:
            asked = Assignment(
                name, placement.source, place.residency, placement.waves, placement.priority, place.demand
            )
            found.setdefault(place.engine, {})[name] = asked
    return found
