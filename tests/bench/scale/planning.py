"""The planner alone: 64,000 placements on 1,000 engines from scratch, and again after one wave has changed."""

import time

import msgspec

from mint_contracts.records import MapState
from mint_operator.garbage import Garbage
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedWave, Snapshot
from tests.bench.rows import Row, measured
from tests.bench.scale.arena import ADAPTERS
from tests.bench.scale.scale import Group, Scale
from tests.operator.worlds import KEY, base, engine, snapshot, wave

METRICS = ("scale.plan_64k_s", "scale.plan_one_wave_ms")


def measure(scale: Scale) -> list[Row]:
    """Measure both rows."""
    count = scale.size(1000)
    waves = [_wave(index, "first") for index in range(count)]
    world = snapshot(base(count, count, 72), waves, [engine(index) for index in range(count)], placements={})
    whole, one, garbage = [], [], Garbage()  # collects as the operator does
    for _ in range(scale.rounds):
        began = time.perf_counter()
        found = plan(world)
        whole.append(time.perf_counter() - began)
        garbage.collect()
        one += _changes(world, found, waves, garbage)
    return [
        measured(METRICS[0], whole, note=f"{count * ADAPTERS} placements on {count} engines"),
        measured(METRICS[1], one, note=f"among {count} waves"),
    ]


def _changes(world: Snapshot, found: Plan, waves: list[ObservedWave], garbage: Garbage) -> list[float]:
    """Return the milliseconds of plans after one wave has changed; each plan is carried out before the next."""
    took = []
    for number in range(10):
        changed = list(waves)
        changed[number] = _wave(number, f"again-{number}")
        world, waves = _carried_out(world, found, changed), changed
        began = time.perf_counter()
        found = plan(world, found.known)
        took.append((time.perf_counter() - began) * 1e3)
        garbage.collect()
    return took[1:]  # the first one reads the complete map that was just written


def _carried_out(world: Snapshot, found: Plan, waves: list[ObservedWave]) -> Snapshot:
    state: MapState = found.known[KEY].written(1)
    known = msgspec.structs.replace(world.maps[KEY], state=state)
    return msgspec.structs.replace(world, maps={KEY: known}, waves=tuple(waves))


def _wave(index: int, which: str) -> ObservedWave:
    return wave(f"w{index:04d}", [f"acme/{which}-{index:04d}-{number:02d}" for number in range(ADAPTERS)])


GROUP = Group(METRICS, measure)
