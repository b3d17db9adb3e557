"""The planner over a thousand engines and hundreds of waves: properties of small worlds also hold for large ones.

Each example draws a few numbers from which a complete world is built, so that few examples cover much.
"""

import random
from collections import Counter
from collections.abc import Mapping

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import Placement, Tier
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedWave, Snapshot
from tests.operator.worlds import KEY, base, engine, engines_of, placed, snapshot, wave

ENGINES, SLOTS = 1000, 8
AT_SCALE = settings(max_examples=4, deadline=None)


@st.composite
def crowds(draw: st.DrawFn) -> Snapshot:
    """Draw waves that together want 0.1 to 2 times what the engines can hold; some share adapters."""
    chance, share = random.Random(draw(st.integers(0, 1 << 32))), draw(st.sampled_from([0.1, 0.8, 1.0, 2.0]))
    waves: list[ObservedWave] = []
    wanted = 0
    while wanted < share * ENGINES * SLOTS:
        count, replicas = chance.randint(1, 64), chance.choice([1, 1, 1, 2, 5])
        names = chance.sample(range(20_000), count)
        waves.append(
            wave(
                f"w{len(waves):04d}",
                [f"a/{name:05d}" for name in names],
                replicas=replicas,
                residency=chance.choice(["Device", "Device", "Device", "Host"]),
                priority=chance.randint(-1, 1),
            )
        )
        wanted += count * replicas
    views = [engine(ordinal) for ordinal in range(ENGINES)]
    return snapshot(base(ENGINES, ENGINES, SLOTS), waves, views, placements={})


@given(crowds())
@AT_SCALE
def test_admitted_waves_are_placed_completely_and_within_every_engine(of: Snapshot) -> None:
    found = plan(of)
    now = placed(found)
    admitted = [each for each in of.waves if found.wave_statuses[each.meta.key].phase == "Placing"]
    assert admitted
    assert now.keys() == {name for each in admitted for name in each.spec.adapters.names}
    for each in admitted:
        assert all(len(now[name].places) >= each.spec.serve.replicas for name in each.spec.adapters.names)
    for placement in now.values():
        assert len({place.engine for place in placement.places}) == len(placement.places)
    assert max(in_slots(now).values(), default=0) <= SLOTS


@given(crowds(), st.integers(1, 50), st.randoms(use_true_random=False))
@AT_SCALE
def test_when_engines_die_no_more_moves_than_they_held(of: Snapshot, dead: int, chance: random.Random) -> None:
    first = plan(of)
    before = placed(first)
    gone = {f"smol-{ordinal}" for ordinal in chance.sample(range(ENGINES), dead)}
    views = [engine(ordinal, alive=f"smol-{ordinal}" not in gone) for ordinal in range(ENGINES)]
    later = carried_out(of, first)
    known = msgspec.structs.replace(later.maps[KEY], engines=tuple(views), away_s=dict.fromkeys(gone, 60.0))
    now = placed(plan(msgspec.structs.replace(later, maps={KEY: known}), first.known), before)
    lost = sum(place.engine in gone for each in before.values() for place in each.places)
    moved = sum(len(engines_of(each) - engines_of(now[name])) for name, each in before.items())
    gave_way = sum("a copy of higher priority" in place.why for each in now.values() for place in each.places)
    assert moved - gave_way <= 1.05 * lost
    assert gave_way <= lost, "and at most one copy of lower priority gives way to each"
    assert max(in_slots(now).values(), default=0) <= SLOTS


@given(crowds(), st.randoms(use_true_random=False))
@AT_SCALE
def test_a_changed_wave_is_planned_as_from_nothing_and_moves_no_other(of: Snapshot, chance: random.Random) -> None:
    first = plan(of)
    before = placed(first)
    waves = list(of.waves)
    index = chance.randrange(len(waves))
    old = waves[index]
    waves[index] = wave(old.meta.name, [f"b/{number}" for number in range(chance.randint(1, 8))])
    later = msgspec.structs.replace(carried_out(of, first), waves=tuple(waves))
    whole, step = plan(later), plan(later, first.known)
    assert {name: engines_of(each) for name, each in placed(step, before).items()} == {
        name: engines_of(each) for name, each in placed(whole, before).items()
    }
    others = {name for each in of.waves if each is not old for name in each.spec.adapters.names}
    now = placed(step, before)
    moved = sum(len(engines_of(before[name]) - engines_of(now[name])) for name in others & before.keys() & now.keys())
    brought = sum(len(now[name].places) for name in now.keys() - before.keys())
    dropped = sum(len(each.places) for name, each in before.items() if name in old.spec.adapters.names)
    assert moved <= brought + dropped, "what is there moves only to make room, once for a copy"


def carried_out(of: Snapshot, found: Plan) -> Snapshot:
    known = msgspec.structs.replace(of.maps[KEY], state=found.known[KEY].written(2))
    return msgspec.structs.replace(of, maps={KEY: known})


def in_slots(placements: Mapping[str, Placement]) -> Counter[str]:
    """Count Device copies by engine."""
    places = [place for placement in placements.values() for place in placement.places]
    return Counter(place.engine for place in places if place.residency is Tier.DEVICE)
