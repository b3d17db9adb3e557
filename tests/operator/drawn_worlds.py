"""Worlds for the planner that Hypothesis draws."""

from collections import Counter
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from mint_contracts.records import Place, Placement, Tier
from mint_contracts.resources import Residency
from mint_operator.planning.snapshot import ObservedBase, ObservedWave, Snapshot
from tests.operator.worlds import base, engine, snapshot, source, wave

NAMES = [f"a/{index}" for index in range(6)]
RESIDENCIES: list[Residency] = ["Device", "Device", "Device", "Host", "Disk"]  # mostly the tier that takes slots


@st.composite
def bases(draw: st.DrawFn) -> ObservedBase:
    high = draw(st.sampled_from([1, 2, 2, 3, 4]))
    return base(draw(st.integers(1, high)), high, draw(st.sampled_from([1, 2, 2, 3, 4])))


@st.composite
def some_waves(draw: st.DrawFn, residencies: Sequence[Residency] = RESIDENCIES) -> list[ObservedWave]:
    return [
        wave(
            f"w{index}",
            draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)),
            replicas=draw(st.sampled_from([1, 1, 1, 2, 3])),
            residency=draw(st.sampled_from(residencies)),
            priority=draw(st.integers(-1, 1)),
        )
        for index in range(draw(st.sampled_from([0, 1, 2, 2, 3])))
    ]


@st.composite
def any_map(draw: st.DrawFn) -> dict[str, Placement]:
    """Draw any map, even one made under other bounds: too many copies, engines that are gone, other tiers."""
    found = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=2, unique=True)):
        engines = draw(st.lists(st.sampled_from([0, 0, 1, 2, 4]), min_size=1, max_size=3, unique=True))
        tier = draw(st.sampled_from([Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK]))
        places = tuple(Place(engine=f"smol-{ordinal}", residency=tier, why="drawn") for ordinal in engines)
        found[name] = Placement(adapter=name, source=source(name), waves=("team/old",), places=places)
    return found


@st.composite
def worlds(draw: st.DrawFn, residencies: Sequence[Residency] = RESIDENCIES) -> Snapshot:
    """Draw a base and waves, over an arbitrary earlier map and earlier engines."""
    of = draw(bases())
    before = draw(any_map())
    engines, away = [], {}
    for ordinal in range(of.spec.engine.replicas.max):
        alive = draw(st.booleans())
        held = {name: draw(st.sampled_from(Tier)) for name in draw(st.sets(st.sampled_from(NAMES), max_size=4))}
        engines.append(engine(ordinal, held, alive=alive, ready=draw(st.booleans())))
        away[f"smol-{ordinal}"] = 0.0 if alive else draw(st.sampled_from([1.0, 100.0]))
    lost = draw(st.sampled_from([False, False, True]))
    known = None if lost else before
    return snapshot(of, draw(some_waves(residencies)), engines, placements=known, away_s=away)


def most_in_slots(placements: Mapping[str, Placement]) -> int:
    """Return the largest number of Device copies on one engine."""
    places = [place for placement in placements.values() for place in placement.places]
    return max(Counter(place.engine for place in places if place.residency is Tier.DEVICE).values(), default=0)
