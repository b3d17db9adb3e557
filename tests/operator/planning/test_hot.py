"""Adapters in demand get spare copies if there is room, and lose them later; wanted copies never suffer for them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import Place, Placement, Tier
from mint_operator.placing.target import FULL, KEPT
from mint_operator.planning.demand import LEAST, MOST, coarse, followed
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import BaseMap, ObservedWave
from tests.operator.drawn_worlds import most_in_slots
from tests.operator.worlds import KEY, base, engine, homes, placed, snapshot, source, wave

ENGINES, SLOTS = 4, 3
Placements = dict[str, Placement]


class Hot:
    """A base of four engines that is planned repeatedly; each plan is carried out."""

    def __init__(self, *waves: ObservedWave) -> None:
        self.waves = list(waves)
        self.placements: Placements = {}
        self.away_s: dict[str, float] = {}
        self.alive = [True] * ENGINES

    def step(self, demand: Mapping[str, float]) -> Placements:
        held: list[dict[str, Tier]] = [{} for _ in range(ENGINES)]
        for placement in self.placements.values():
            for place in placement.places:
                held[int(place.engine[-1])][placement.adapter] = Tier.DEVICE
        views = [engine(ordinal, held[ordinal], alive=self.alive[ordinal]) for ordinal in range(ENGINES)]
        of = snapshot(base(ENGINES, ENGINES, SLOTS), self.waves, views, self.placements, away_s=self.away_s)
        known: BaseMap = msgspec.structs.replace(of.maps[KEY], demand=demand)
        self.placements = placed(plan(msgspec.structs.replace(of, maps={KEY: known})), self.placements)
        return self.placements

    def copies(self, adapter: str = "a/0") -> int:
        return len(self.placements[adapter].places)

    def spare(self) -> int:
        return sum(place.spare for place in self.placements["a/0"].places)


def test_a_hot_adapter_gets_a_copy_for_each_half_batch_and_the_place_says_so() -> None:
    world = Hot(wave("one", ["a/0", "a/1"]))
    world.step({})
    assert world.copies() == 1
    world.step({"a/0": 2 * FULL + 1})
    assert (world.copies(), world.spare(), world.copies("a/1")) == (3, 2, 1)
    assert world.placements["a/0"].places[-1].why == "in demand: 65 requests in flight"
    assert len(set(homes(world.placements)["a/0"])) == 3
    world.step({"a/0": 100 * FULL})
    assert world.copies() == ENGINES


def test_copies_go_only_when_demand_has_fallen_to_half_of_what_brought_them() -> None:
    world = Hot(wave("one", ["a/0"]))
    world.step({})
    world.step({"a/0": FULL + 1})
    before = world.placements
    for requests in (FULL, FULL - 1, KEPT):
        assert world.step({"a/0": requests}) == before
    world.step({"a/0": KEPT - 1})
    assert (world.copies(), world.spare()) == (1, 0)


def on(name: str, *places: tuple[int, bool]) -> Placement:
    """Return the placement of an adapter by its engines and whether its copy there is spare."""
    found = tuple(Place(f"smol-{ordinal}", Tier.DEVICE, "drawn", spare=spare) for ordinal, spare in places)
    return Placement(name, source(name), ("team/any",), found)


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.DISK])
def test_a_spare_copy_takes_the_place_of_one_whose_slot_is_wanted_once_it_can_answer(tier: Tier) -> None:
    """The first engine is full of wanted copies, and the second one has the other copy of what wants a slot there."""
    before = {"a/0": on("a/0", (0, False), (1, True)), "a/1": on("a/1", (0, False)), "b": on("b", (1, False))}
    waves = [wave("one", ["a/0", "a/1"]), wave("two", ["b"], replicas=2)]
    views = [engine(0, dict.fromkeys(("a/0", "a/1"), Tier.DEVICE)), engine(1, {"a/0": tier, "b": Tier.DEVICE})]
    of = snapshot(base(2, 2, 2), waves, views, before)
    known = msgspec.structs.replace(of.maps[KEY], demand={"a/0": FULL + 1})
    now = placed(plan(msgspec.structs.replace(of, maps={KEY: known})), before)
    if tier is Tier.DEVICE:
        assert homes(now) == {"a/0": ["smol-1"], "a/1": ["smol-0"], "b": ["smol-1", "smol-0"]}
        assert not now["a/0"].places[0].spare
    else:
        assert homes(now) == homes(before)


def test_a_spare_copy_gives_its_slot_to_a_wave_and_nothing_else_moves() -> None:
    world = Hot(wave("one", [f"a/{index}" for index in range(ENGINES * SLOTS - 1)]))
    world.step({})
    world.step({"a/0": FULL + 1})
    assert world.spare() == 1
    before = homes(world.placements)
    world.waves.append(wave("two", ["b/0"], created="2027-01-01T00:00:00Z"))
    world.step({"a/0": FULL + 1})
    now = homes(world.placements)
    assert (world.copies(), len(now["b/0"])) == (1, 1)
    assert all(now[name] == before[name] for name in before if name != "a/0")


def test_a_spare_copy_takes_over_when_the_wanted_one_is_lost() -> None:
    world = Hot(wave("one", ["a/0"]))
    world.step({})
    world.step({"a/0": FULL + 1})
    first, second = world.placements["a/0"].places
    world.alive[int(first.engine[-1])] = False
    world.away_s = {first.engine: 60.0}
    world.step({"a/0": 1.0})
    assert [(place.engine, place.spare) for place in world.placements["a/0"].places] == [(second.engine, False)]


def test_what_returns_from_a_lost_engine_says_how_much_it_was_asked_for() -> None:
    world = Hot(wave("one", [f"a/{index}" for index in range(4)]))
    world.step({})
    dead = homes(world.placements)["a/1"][0]
    world.alive[int(dead[-1])] = False
    world.away_s = {dead: 60.0}
    [place] = world.step({"a/1": 2.8})["a/1"].places
    assert place.engine != dead
    assert place.demand == 2.8


def test_a_wave_that_wants_more_copies_takes_the_spare_ones_as_its_own() -> None:
    world = Hot(wave("one", ["a/0"]))
    world.step({})
    world.step({"a/0": FULL + 1})
    before = homes(world.placements)
    world.waves = [wave("one", ["a/0"], replicas=2)]
    world.step({"a/0": FULL + 1})
    assert homes(world.placements) == before
    assert world.spare() == 0


demands = st.dictionaries(
    st.sampled_from([f"a/{index}" for index in range(6)] + ["x/unknown"]),
    st.sampled_from([0.0, 1.0, KEPT, FULL - 1, FULL + 1, 2 * FULL + 1, 200.0]),
)


@given(st.lists(demands, min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 2))
@settings(max_examples=150, deadline=None)
def test_whatever_is_in_demand_every_wanted_copy_stays_where_it_is(
    seen: Sequence[Mapping[str, float]], adapters: int, replicas: int
) -> None:
    """Churn is bounded: only spare copies come and go, and a constant demand moves nothing."""
    names = [f"a/{index}" for index in range(adapters)]
    world = Hot(wave("one", names, replicas=replicas))
    wanted = homes(world.step({}))
    for demand in seen:
        now = world.step(demand)
        assert most_in_slots(now) <= SLOTS
        for name, placement in now.items():
            assert [place.engine for place in placement.places if not place.spare] == wanted[name]
            assert max(Counter(place.engine for place in placement.places).values()) == 1
        assert world.step(demand) == now


@given(st.lists(st.floats(0, 256), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_copies_change_no_more_often_than_demand_swings_by_half_a_copy(story: Sequence[float]) -> None:
    world = Hot(wave("one", ["a/0"]))
    world.step({})
    changes, swing, last = 0, 0.0, 0.0
    for requests in story:
        before = world.copies()
        world.step({"a/0": requests})
        changes += abs(world.copies() - before)
        swing, last = swing + abs(requests - last), requests
    assert changes * KEPT <= swing


def test_a_map_of_places_without_demand_has_no_spare_copies() -> None:
    places = tuple(Place(f"smol-{ordinal}", Tier.DEVICE, "drawn", spare=ordinal > 0) for ordinal in range(3))
    world = Hot(wave("one", ["a/0"]))
    world.placements = {"a/0": Placement("a/0", world.step({})["a/0"].source, ("team/one",), places)}
    world.step({})
    assert [place.spare for place in world.placements["a/0"].places] == [False]


def test_demand_is_the_sum_over_engines_smoothed_and_fades() -> None:
    demand = followed({}, [{"a": 8.0}, {"a": 24.0, "b": 1.0}], 1.0)
    assert demand == {"a": 32.0, "b": 1.0}
    assert followed(demand, [], 0.5) == {"a": 16.0, "b": 0.5}
    assert followed(demand, [], 1.0) == {}


@given(st.lists(st.dictionaries(st.text(max_size=3), st.floats(0, 100), max_size=50), max_size=5), st.floats(0, 1))
def test_demand_is_tracked_for_a_bounded_number_of_adapters(demands: list[dict[str, float]], weight: float) -> None:
    many = {f"n{index}": 1.0 + index for index in range(MOST)}
    found = followed(many, demands, weight)
    assert len(found) <= MOST
    assert all(each >= LEAST for each in found.values())


def test_demand_that_wavers_within_a_third_is_no_news() -> None:
    assert coarse({"a": 1.0, "b": 33.0, "c": 44.0, "d": 46.0}) == {"a": 1.0, "b": 32.0, "c": 32.0, "d": 45.25}
