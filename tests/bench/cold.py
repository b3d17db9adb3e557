"""Time to first token while adapters load: 64 cold ones at once, and one alone.

Cold means packed on local disk, but in no slot, not in host memory and not in the page cache. Warm means in a slot.
"""

import sys
from pathlib import Path
from typing import Any

from tests.bench.adapters import MADE, make_adapters, names
from tests.bench.bench import Bench, Group
from tests.bench.models import linears
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured, percentile
from tests.bench.side import Side
from tests.bench.workload import TOGETHER

RANK = 32
ALONE = 24  # adapters that are requested one after another
_LITTLE = 1 << 20  # bytes of host memory: too few for any of these adapters, so one without a slot is only on disk
_MS = 1000.0


def made(bench: Bench) -> tuple[Path, list[str]]:
    """Return a store of adapters, and their names."""
    with bench.doing(f"adapters of rank {RANK}"):
        store = make_adapters(bench.base_key, linears(bench.base), RANK, MADE)
    return store, names(RANK, MADE)


def _together(bench: Bench) -> list[Row]:
    """Measure 64 simultaneous requests for 64 cold adapters, then again when they are warm; all slots start full."""
    store, everyone = made(bench)
    these, those = everyone[:TOGETHER], everyone[TOGETHER:]
    with scratch("engine") as cache, engine_of(bench, store, cache, TOGETHER) as ours:
        with bench.doing("ours: adapters taken in once"):
            ours.ask("touch", names=[*these, *those])
        ask = _p95_of(bench, ours, "first")
        ask(-1, these, "warm-up")
        found: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(bench.rounds):
            for crowd in (those, these):  # each crowd starts cold, since the other has all the slots
                ours.ask("forget")
                found["cold"].append(ask(2 * number, crowd, "64 cold"))
                found["warm"].append(ask(2 * number + 1, crowd, "the same 64, warm"))
    note = f"rank {RANK}, p95 of first tokens"
    return [measured("load.cold64_p95_over_warm_p95", found["cold"], found["warm"], note)]


def _alone(bench: Bench) -> list[Row]:
    """Measure single requests, each for an adapter that left its slot, then immediately again."""
    store, everyone = made(bench)
    few = everyone[: 4 if bench.quick else ALONE]
    with scratch("engine") as cache, engine_of(bench, store, cache, len(few) // 2) as ours:
        with bench.doing("ours: adapters taken in once"):
            ours.ask("touch", names=few)
        seeds = iter(range(10**6))

        def first(name: str) -> float:
            work = bench.work(next(seeds), requests=1, together=1, new_tokens=1, adapters=(name,))
            return float(bench.ask(ours, work)["first"][0]) * _MS

        first(few[0])
        cold, warm = [], []
        with bench.doing("ours: one cold, then warm"):
            for _ in range(bench.rounds):
                for name in few:  # more than there are slots, so the ones before have evicted it
                    ours.ask("forget")
                    cold.append(first(name))
                    warm.append(first(name))
    return [measured("ttft.cold_over_warm", cold, warm, f"rank {RANK}")]


def engine_of(bench: Bench, store: Path, cache: Path, slots: int, disk_bytes: int = 16 << 30) -> Side:
    """Return a started engine over a store of adapters."""
    setup = Setup(
        str(bench.base), str(cache), bench.device, f"file://{store}", RANK, slots, host_bytes=_LITTLE,
        disk_bytes=disk_bytes,
    )  # fmt: skip
    side = bench.ours(sys.executable, setup)
    try:
        bench.start(side)
    except BaseException:
        side.close()
        raise
    return side


def _p95_of(bench: Bench, ours: Side, what: str) -> Any:
    def ask(number: int, crowd: list[str], told: str) -> float:
        found = bench.round(ours, bench.work(number + 2, new_tokens=4, adapters=tuple(crowd)), told)
        return percentile(found[what], 95) * _MS

    return ask


GROUPS = (
    Group(("load.cold64_p95_over_warm_p95",), _together),
    Group(("ttft.cold_over_warm",), _alone),
)
