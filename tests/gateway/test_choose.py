"""Choosing an engine: the order, and the properties that hold for every map."""

import asyncio
import math
from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import AdapterNotFound, CorruptFile, MapUnavailable
from mint_contracts.placement_pb2 import Explanation
from mint_contracts.records import BaseRecord, Failure, Held, Place, Placement, Tier
from mint_contracts.source import Source
from mint_gateway.choose import LOAD_FACTOR, Now, candidates, home_order, load, refusal
from mint_gateway.explain import explain, explain_all
from mint_gateway.view import Engine, MapView, live_engine, newest_published
from tests.engine_views import engine_record

STORE = Source("s3://adapters")
ADAPTER = "demo/pirate"
STORED = Source("s3://adapters/demo/pirate")
ELSEWHERE = Source("s3://elsewhere/pirate")


def engine(
    name: str,
    *,
    alive: bool = True,
    ready: bool = True,
    running: int = 0,
    slots: int = 8,
    held: tuple[Held, ...] = (),
) -> Engine:
    record = engine_record(name, address=f"{name}:1", ready=ready, slots_total=slots, running=running)
    return Engine(name=name, record=record, alive=alive, held={copy.adapter: copy for copy in held})


def copy(tier: Tier, source: Source = STORED, failure: Failure | None = None) -> Held:
    return Held(ADAPTER, source, tier, failure=failure)


def view(*engines: Engine, places: tuple[Place, ...] = (), source: Source = STORED, store: bool = True) -> MapView:
    placements = {ADAPTER: Placement(ADAPTER, source, ("demo/wave",), places)} if places else {}
    return MapView(
        base="demo/base",
        version=1,
        record=BaseRecord("demo/base", store=STORE if store else None),
        placements=placements,
        engines={each.name: each for each in engines},
    )


def names(of: MapView, now: Now | None = None, adapter: str = ADAPTER) -> list[str]:
    return [candidate.engine for candidate in candidates(of, adapter, now or Now())]


def place(name: str, tier: Tier = Tier.DEVICE) -> Place:
    return Place(name, tier, "spread")


def published(step: int, tier: Tier = Tier.HOST) -> Held:
    return Held(ADAPTER, Source(f"s3://runs/revisions/{ADAPTER}/.published/1-{step}"), tier, published=True)


def publishers(*held: Held, catalog: Source | None = None, alive: bool = True) -> MapView:
    """Return a view of engines that have published these, and of one that has not."""
    engines = [
        msgspec.structs.replace(live_engine(name, engine(name).record, {ADAPTER: each}), alive=alive)
        for name, each in zip(("e-0", "e-1"), held, strict=False)
    ]
    found = view(*engines, engine("bystander"))
    return msgspec.structs.replace(found, published=newest_published(engines)).with_source(ADAPTER, catalog)


def test_a_published_revision_is_asked_of_its_engine_and_then_of_any_other() -> None:
    here = publishers(published(2))
    assert names(here) == ["e-0", "bystander"]
    assert here.source(ADAPTER) == published(2).source
    assert [here.source_for_engine(ADAPTER, name) for name in names(here)] == [None, published(2).source]
    assert candidates(here, ADAPTER, Now())[0].why == "holds it in Host (published by Trainer calls)"


def test_a_name_published_by_two_engines_means_the_newest_revision() -> None:
    here = publishers(published(2), published(1, Tier.DEVICE))
    assert names(here)[0] == "e-0"
    assert here.source_for_engine(ADAPTER, "e-1") == published(2).source


def test_a_dead_engines_revisions_are_read_by_others() -> None:
    here = publishers(published(2), alive=False)
    assert names(here) == ["bystander"]
    assert here.source_for_engine(ADAPTER, "bystander") == published(2).source


def test_a_gone_engines_revisions_are_read_by_engines_that_announce_them() -> None:
    here = publishers(published(1, Tier.REMOTE), published(2, Tier.REMOTE))
    assert here.source(ADAPTER) == published(2).source
    assert set(names(here)) == {"e-0", "e-1", "bystander"}
    assert [here.source_for_engine(ADAPTER, name) for name in ("e-0", "e-1")] == [published(2).source, None]


def test_the_catalog_takes_precedence_over_an_engines_publication() -> None:
    here = publishers(published(2), catalog=ELSEWHERE)
    assert here.source(ADAPTER) == here.source_for_engine(ADAPTER, "e-0") == ELSEWHERE
    assert here.copy(here.engines["e-0"], ADAPTER) is None


def test_a_pinned_revision_is_the_catalogs_alone() -> None:
    assert publishers(published(2)).source(f"{ADAPTER}@r1") is None


def test_device_then_host_then_disk_then_the_plans_places() -> None:
    fleet = view(
        engine("plan"),
        engine("disk", held=(copy(Tier.DISK, ELSEWHERE),)),
        engine("host", held=(copy(Tier.HOST, ELSEWHERE),)),
        engine("device", held=(copy(Tier.DEVICE, ELSEWHERE),)),
        engine("stranger"),
        places=(place("plan"),),
        source=ELSEWHERE,
    )
    # Any other engine would look in the store, where the name is another adapter or none.
    assert names(fleet) == ["device", "host", "disk", "plan"]


def test_a_copy_from_another_source_is_no_copy() -> None:
    fleet = view(
        engine("old", held=(copy(Tier.DEVICE, STORED),)), engine("plan"), places=(place("plan"),), source=ELSEWHERE
    )
    assert names(fleet) == ["plan"]


def test_equal_copies_go_to_the_fewest_in_flight_then_by_name() -> None:
    held = (copy(Tier.DEVICE),)
    fleet = view(engine("b", held=held), engine("a", held=held), engine("c", running=1, held=held), store=True)
    assert names(fleet)[:3] == ["a", "b", "c"]
    assert names(fleet, Now(in_flight={"a": 2}))[:3] == ["b", "c", "a"]
    assert "least loaded of 3" in candidates(fleet, ADAPTER, Now())[0].why


def test_the_bare_base_goes_to_the_least_loaded() -> None:
    fleet = view(engine("a", running=3), engine("b", running=1), engine("c", running=2))
    assert names(fleet, adapter="") == ["b", "c", "a"]


def test_a_placed_adapter_of_the_store_may_load_anywhere_when_its_places_are_gone() -> None:
    fleet = view(engine("dead", alive=False), engine("other"), places=(place("dead"),))
    assert names(fleet) == ["other"]
    assert names(view(engine("dead", alive=False), engine("other"), places=(place("dead"),), source=ELSEWHERE)) == []


def test_a_failing_connection_comes_last_and_says_so() -> None:
    fleet = view(engine("a", held=(copy(Tier.DEVICE),)), engine("b"))
    ranked = candidates(fleet, ADAPTER, Now(broken=frozenset({"a"})))
    assert [candidate.engine for candidate in ranked] == ["b", "a"]
    assert "its connection fails" in ranked[1].why


def test_while_redis_is_away_heartbeats_count_for_nothing_but_the_order() -> None:
    fleet = view(engine("silent", alive=False, held=(copy(Tier.DEVICE),)), engine("b"))
    assert names(fleet) == ["b"]
    assert names(fleet, Now(map_away=True)) == ["b", "silent"]


def test_a_failure_is_returned_only_when_no_other_engine_is_left() -> None:
    broken = copy(Tier.REMOTE, failure=Failure("CorruptFile", "truncated", terminal=True))
    passing = copy(Tier.REMOTE, failure=Failure("SourceUnavailable", "timeout", terminal=False))
    both = (place("a"), place("b"))
    assert refusal(view(engine("a", held=(broken,)), engine("b"), places=both), ADAPTER, Now()) is None
    assert (
        refusal(view(engine("a", held=(broken,)), engine("b", held=(passing,)), places=both), ADAPTER, Now()) is None
    )
    error = refusal(view(engine("a", held=(broken,)), engine("b", held=(broken,)), places=both), ADAPTER, Now())
    assert isinstance(error, CorruptFile)
    assert "truncated" in str(error)
    # The other source of a newer placement was not tried yet.
    newer = view(engine("a", held=(broken,)), places=(place("a"),), source=ELSEWHERE)
    assert refusal(newer, ADAPTER, Now()) is None


def test_an_adapter_that_nobody_knows_is_not_found_unless_the_base_has_a_store() -> None:
    fleet = view(engine("a"), store=False)
    assert isinstance(refusal(fleet, ADAPTER, Now()), AdapterNotFound)
    unread = refusal(fleet, ADAPTER, Now(map_away=True))
    assert isinstance(unread, MapUnavailable), "while Redis is away it may have come since"
    assert unread.retry_after_s
    assert refusal(view(engine("a"), store=True), ADAPTER, Now()) is None


# Properties.

_ENGINE_NAMES = [f"e-{number}" for number in range(6)]


@st.composite
def fleets(draw: st.DrawFn) -> tuple[MapView, Now]:
    chosen = draw(st.lists(st.sampled_from(_ENGINE_NAMES), unique=True, min_size=1))
    tiers = st.sampled_from(list(Tier))
    engines = []
    for name in chosen:
        failure = draw(st.none() | st.builds(Failure, st.just("CorruptFile"), st.just("x"), st.booleans()))
        one = copy(draw(tiers), draw(st.sampled_from([STORED, ELSEWHERE])), failure)
        engines.append(
            engine(
                name,
                alive=draw(st.booleans()),
                ready=draw(st.booleans()),
                running=draw(st.integers(0, 5)),
                slots=draw(st.integers(0, 64)),
                held=(one,) if draw(st.booleans()) else (),
            )
        )
    places = tuple(
        place(name, draw(st.sampled_from([Tier.DEVICE, Tier.HOST]))) for name in chosen if draw(st.booleans())
    )
    source = draw(st.sampled_from([STORED, ELSEWHERE]))
    now = Now(
        in_flight={name: draw(st.integers(1, 9)) for name in chosen if draw(st.booleans())},
        broken=frozenset(name for name in chosen if draw(st.booleans())),
        map_away=draw(st.booleans()),
    )
    return view(*engines, places=places, source=source, store=draw(st.booleans())), now


@given(fleets(), st.sampled_from(["", ADAPTER]))
def test_dead_engines_are_not_chosen_and_doubtful_ones_come_last(fleet: tuple[MapView, Now], adapter: str) -> None:
    seen, now = fleet
    ranked = [seen.engines[candidate.engine] for candidate in candidates(seen, adapter, now)]
    assert len({each.name for each in ranked}) == len(ranked)
    if not now.map_away:
        assert all(each.available for each in ranked)
    sure = [each.available and each.name not in now.broken for each in ranked]
    assert sure == sorted(sure, reverse=True)


@given(fleets())
def test_a_live_copy_that_can_answer_is_always_first(fleet: tuple[MapView, Now]) -> None:
    seen, now = fleet
    copies = {
        each.name: seen.copy(each, ADAPTER).tier.warmth  # type: ignore[union-attr]
        for each in seen.engines.values()
        if seen.copy(each, ADAPTER) and each.available and each.name not in now.broken
    }
    ranked = candidates(seen, ADAPTER, now)
    if copies:
        assert copies.get(ranked[0].engine) == max(copies.values())


@given(fleets())
def test_an_adapter_is_explained_alike_alone_and_in_a_list(fleet: tuple[MapView, Now]) -> None:
    seen, now = fleet
    for each in asyncio.run(listed(seen, now)):
        assert each == explain(seen, each.adapter, now)


async def listed(seen: MapView, now: Now, after: str = "") -> list[Explanation]:
    return [each async for each in explain_all(seen, now, after)]


class Read(dict[str, Held]):
    """An engine's holdings, recording which names were read."""

    def __init__(self, held: dict[str, Held]) -> None:
        super().__init__(held)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Held:
        self.names.add(name)
        return super().__getitem__(name)


async def test_a_list_is_read_only_as_far_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for a page delays others by the time for that page, not for the complete map."""
    monkeypatch.setattr("mint_gateway.explain.AT_ONCE", 3)
    every = [f"acme/{number}" for number in range(8)]
    held = Read({name: Held(name, Source(f"s3://registered/{name}"), Tier.HOST) for name in every[1:]})
    catalog = BaseRecord("demo/base", store=STORE, catalog=Source("s3://catalog"))
    placements = {name: Placement(name, Source(f"s3://waves/{name}"), (), (place("e-0"),)) for name in every[:2]}
    seen = MapView("demo/base", 1, catalog, placements, {"e-0": msgspec.structs.replace(engine("e-0"), held=held)})
    explanations = explain_all(seen, Now())
    assert (await anext(explanations)).adapter == every[0]
    assert held.names == set(every[1:3])
    assert [each.adapter async for each in explanations] == every[1:]
    after_the_first = await listed(seen, Now(), every[0])
    assert [each.source_uri[:10] for each in after_the_first] == ["s3://waves"] + ["s3://regis"] * 6
    assert not await listed(seen, Now(), every[-1])


@given(fleets(), st.randoms())
def test_the_same_map_gives_the_same_order_however_it_is_written(fleet: tuple[MapView, Now], random: Random) -> None:
    seen, now = fleet
    shuffled = list(seen.engines.items())
    random.shuffle(shuffled)
    again = MapView(seen.base, seen.version, seen.record, seen.placements, dict(shuffled))
    assert candidates(seen, ADAPTER, now) == candidates(again, ADAPTER, now)


@given(st.lists(st.integers(1, 64), min_size=2, max_size=8), st.data())
def test_when_an_engine_leaves_only_its_own_adapters_move(slots: list[int], data: st.DataObject) -> None:
    fleet = [engine(f"e-{number}", slots=count) for number, count in enumerate(slots)]
    leaver = data.draw(st.sampled_from(fleet))
    left = [each for each in fleet if each is not leaver]
    for adapter in [f"acme/{number}" for number in range(50)]:
        before = home_order(adapter, fleet, Now())[0][0]
        after = home_order(adapter, left, Now())[0][0]
        assert before is leaver or after is before


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 40)), min_size=1, max_size=8))
def test_the_home_is_never_above_its_bound(fleet: list[tuple[int, int]]) -> None:
    engines = [engine(f"e-{n}", slots=slots, running=running) for n, (slots, running) in enumerate(fleet)]
    total, weights = sum(load(each, Now()) for each in engines) + 1, sum(slots for slots, _ in fleet)
    for adapter in [f"acme/{number}" for number in range(20)]:
        home = home_order(adapter, engines, Now())[0][0]
        assert load(home, Now()) + 1 <= math.ceil(LOAD_FACTOR * total * home.record.slots_total / weights)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_homes_are_shared_by_weight(salt: int) -> None:
    engines = [engine("small", slots=8), engine("large", slots=24)]
    homes = Counter(home_order(f"{salt}/{number}", engines, Now())[0][0].name for number in range(2000))
    # Binomial(2000, 3/4): mean 1500, standard deviation 19.4; six of them.
    assert abs(homes["large"] - 1500) < 6 * 19.4


def test_one_burst_of_distinct_adapters_spreads_within_the_bound() -> None:
    engines = [engine(f"e-{number}") for number in range(2)]
    in_flight: Counter[str] = Counter()
    for number in range(512):  # MinT's sticky hash failed 49% of these on two replicas
        in_flight[home_order(f"acme/{number}", engines, Now(in_flight=in_flight))[0][0].name] += 1
        assert max(in_flight.values()) <= math.ceil(LOAD_FACTOR * sum(in_flight.values()) / 2)
