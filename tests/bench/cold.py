"""First tokens and gaps while adapters load: 64 cold ones at once, one alone, and a stream of loads beside decoding.

Cold is: packed on local disk, in no slot, not in host memory and not in the system's cache. Warm is: in a slot.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.adapters import MADE, make_adapters, names
from tests.bench.bench import Bench, Group, take_turns
from tests.bench.models import linears
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured, percentile
from tests.bench.side import Side
from tests.bench.workload import TOGETHER

RANK = 32
ALONE = 24  # adapters that are asked one after another
DECODING = 16  # requests that decode while others load
_LITTLE = 1 << 20  # bytes of host memory: none of these adapters fits, so what leaves its slot is on disk only
_MS = 1000.0


def _made(bench: Bench) -> tuple[Path, list[str]]:
    with bench.doing(f"adapters of rank {RANK}"):
        store = make_adapters(bench.base_key, linears(bench.base), RANK, MADE)
    return store, names(RANK, MADE)


def _together(bench: Bench) -> list[Row]:
    """64 requests at once for 64 cold adapters, then the same for the same ones, warm; all slots full before."""
    store, everyone = _made(bench)
    these, those = everyone[:TOGETHER], everyone[TOGETHER:]
    with scratch("engine") as cache, _engine(bench, store, cache, TOGETHER) as ours:
        with bench.doing("ours: adapters taken in once"):
            ours.ask("touch", names=[*these, *those])
        ask = _p95_of(bench, ours, "first")
        ask(-1, these, "warm-up")
        found: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(bench.rounds):
            for crowd in (those, these):  # each comes cold, since the other has all the slots
                ours.ask("forget")
                found["cold"].append(ask(2 * number, crowd, "64 cold"))
                found["warm"].append(ask(2 * number + 1, crowd, "the same 64, warm"))
    note = f"rank {RANK}, p95 of first tokens"
    return [measured("load.cold64_p95_over_warm_p95", found["cold"], found["warm"], note)]


def _alone(bench: Bench) -> list[Row]:
    """One request at a time, each for an adapter that left its slot, then again at once."""
    store, everyone = _made(bench)
    few = everyone[: 4 if bench.quick else ALONE]
    with scratch("engine") as cache, _engine(bench, store, cache, len(few) // 2) as ours:
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
                for name in few:  # more than there are slots, in turn: each was put out by those before it
                    ours.ask("forget")
                    cold.append(first(name))
                    warm.append(first(name))
    return [measured("ttft.cold_over_warm", cold, warm, f"rank {RANK}")]


def _beside(bench: Bench) -> list[Row]:
    """Gaps between tokens of 16 adapters' requests, while others stream from the disk through the slots left."""
    store, everyone = _made(bench)
    busy, streaming = everyone[:DECODING], everyone[DECODING:]
    with scratch("engine") as cache, _engine(bench, store, cache, 2 * DECODING) as ours:
        with bench.doing("ours: adapters taken in once"):
            ours.ask("touch", names=everyone)
            ours.ask("hold", names=busy, tier="Device")

        def gaps(stream: list[str]) -> Any:
            def ask(number: int) -> float:
                work = bench.work(2 * number + bool(stream), requests=DECODING, adapters=tuple(busy))
                found = bench.round(ours, work, "decode beside loads" if stream else "decode", stream=stream)
                for what, rate in ((loads, "streamed"), (disk, "read")) if stream else ():
                    what.append(found[rate] / found["seconds"])
                return percentile(found["gaps"], 95) * _MS

            return ask

        loads: list[float] = []
        disk: list[float] = []
        gaps([])(10**6)
        found = take_turns(bench.rounds, {"idle": gaps([]), "loads": gaps(streaming)})
    speed = f"{median(loads):.0f} loads/s, {median(disk) / 1e6:.0f} MB/s read from the disk"
    note = f"rank {RANK}, {DECODING} decode, {speed}"
    return [measured("serve.itl_p95_during_loads_over_idle", found["loads"], found["idle"], note)]


def _engine(bench: Bench, store: Path, cache: Path, slots: int) -> Side:
    setup = Setup(str(bench.base), str(cache), bench.device, f"file://{store}", RANK, slots=slots, host_bytes=_LITTLE)
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
    Group(("serve.itl_p95_during_loads_over_idle",), _beside),
)
