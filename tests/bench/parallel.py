"""An engine with two ranks against one with a single rank, one thread each: what sharding the layers gains."""

import sys
from contextlib import ExitStack
from pathlib import Path

from tests.bench.bench import Bench, Group
from tests.bench.moe import upcycled
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured
from tests.bench.serve import rate, rounds

_EXPERTS = 8


def _own_kernels(bench: Bench) -> list[Row]:
    return _two_over_one(bench, "tp.tp2_over_tp1", bench.base, "bare base")


def _experts(bench: Bench) -> list[Row]:
    """Each rank holds one half of a layer's experts, unsplit."""
    return _two_over_one(bench, "tp.experts2_over_1", upcycled(bench, _EXPERTS), f"bare base of {_EXPERTS} experts")


def _two_over_one(bench: Bench, metric: str, base: Path, what: str) -> list[Row]:
    with scratch("one") as one_cache, scratch("two") as two_cache, ExitStack() as sides:
        turns = {}
        for name, ranks, cache in (("two", 2, two_cache), ("one", 1, one_cache)):
            setup = Setup(str(base), str(cache), bench.device, ranks=ranks, threads=1)
            side = sides.enter_context(bench.ours(sys.executable, setup, name, OMP_NUM_THREADS="1"))
            bench.start(side)
            turns[name] = rate(bench, side, f"{ranks} ranks" if ranks > 1 else "1 rank", ())
        found = rounds(bench, turns)
    return [measured(metric, found["two"], found["one"], f"one thread a rank, {what}")]


GROUPS = (Group(("tp.tp2_over_tp1",), _own_kernels), Group(("tp.experts2_over_1",), _experts))
