"""64 distinct adapters on all experts against none: SmolLM2 upcycled into 8 and into 32 experts, two for a token."""

import sys
from functools import partial
from pathlib import Path

from tests.bench.adapters import make_adapters, names
from tests.bench.bench import Bench, Group
from tests.bench.our_setup import Setup
from tests.bench.places import bench_cache, made_once, scratch
from tests.bench.rows import Row, measured
from tests.bench.serve import rate, rounds
from tests.bench.shapes import expert_shapes
from tests.bench.workload import TOGETHER
from tests.upcycle import write

# 32 experts with rank 4 are 52 MB an adapter: 64 of them fit the memory of the machine that this is measured on.
_RANK = 4


def upcycled(bench: Bench, experts: int) -> Path:
    """The base with so many experts, made once."""
    with bench.doing(f"upcycled into {experts} experts"):
        folder = bench_cache() / "models" / f"upcycled-{bench.base_key}-{experts}"
        return made_once(folder, lambda unfinished: write(bench.base, unfinished, experts))


def _mixed(bench: Bench, experts: int) -> list[Row]:
    base = upcycled(bench, experts)
    with bench.doing(f"adapters of rank {_RANK} on all of them"):
        store = make_adapters(f"{bench.base_key}-{experts}", expert_shapes(base), _RANK, TOGETHER)
    chosen = tuple(names(_RANK, TOGETHER))
    with scratch("engine") as cache:
        setup = Setup(str(base), str(cache), bench.device, store=f"file://{store}", max_rank=_RANK)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            with bench.doing("ours: adapters into slots"):
                ours.ask("hold", names=list(chosen), tier="Device")
            found = rounds(
                bench,
                {"mixed": rate(bench, ours, f"64 of rank {_RANK}", chosen), "base": rate(bench, ours, "base", ())},
            )
    note = f"{experts} experts, two for a token; rank {_RANK} on all of them and on attention"
    return [measured(f"serve.moe_mixed64_over_base.e{experts}", found["mixed"], found["base"], note)]


GROUPS = tuple(
    Group((f"serve.moe_mixed64_over_base.e{experts}",), partial(_mixed, experts=experts)) for experts in (8, 32)
)
