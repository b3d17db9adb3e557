"""An engine of two ranks against one of a single rank, one thread each: what sharing the layers out is worth."""

import sys
from contextlib import ExitStack

from tests.bench.bench import Bench, Group
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured
from tests.bench.serve import rate, rounds


def _two_over_one(bench: Bench) -> list[Row]:
    with scratch("one") as one_cache, scratch("two") as two_cache, ExitStack() as sides:
        turns = {}
        for name, ranks, cache in (("two", 2, two_cache), ("one", 1, one_cache)):
            setup = Setup(str(bench.base), str(cache), bench.device, ranks=ranks, threads=1)
            side = sides.enter_context(bench.ours(sys.executable, setup, name, OMP_NUM_THREADS="1"))
            bench.start(side)
            turns[name] = rate(bench, side, f"{ranks} ranks" if ranks > 1 else "1 rank", ())
        found = rounds(bench, turns)
    return [measured("tp.tp2_over_tp1", found["two"], found["one"], "one thread a rank, bare base")]


GROUPS = (Group(("tp.tp2_over_tp1",), _two_over_one),)
