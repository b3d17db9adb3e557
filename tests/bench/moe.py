"""SmolLM2 upcycled into experts, two per token: 64 adapters on all of them against none, and quantised experts."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.adapters import make_adapters, names
from tests.bench.bench import Bench, Group
from tests.bench.our_setup import Setup
from tests.bench.packed import GROUP, write_packed
from tests.bench.places import bench_cache, made_once, scratch
from tests.bench.rows import Row, measured
from tests.bench.serve import rate, rounds
from tests.bench.shapes import expert_shapes
from tests.bench.side import Side
from tests.bench.workload import TOGETHER
from tests.upcycle import write

# With 32 experts, a rank-4 adapter has 52 MB: 64 of them fit the memory of the machine that this is measured on.
_RANK = 4


def upcycled(bench: Bench, experts: int) -> Path:
    """Return the base upcycled into `experts` experts, made once."""
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


def _quantised(bench: Bench, experts: int, together: int) -> list[Row]:
    """Compare experts kept in INT4 with the same base's in bfloat16, without adapters."""
    plain = upcycled(bench, experts)
    with bench.doing("its experts in INT4"):
        folder = bench_cache() / "models" / f"upcycled-{bench.base_key}-{experts}-int4"
        kept = made_once(folder, lambda unfinished: write_packed(plain, unfinished))
    with ExitStack() as sides:
        turns = {}
        for name, base in (("kept", kept), ("plain", plain)):
            cache = sides.enter_context(scratch(name))
            setup = Setup(str(base), str(cache), bench.device, slots=1, quantised_experts=name == "kept")
            side = sides.enter_context(bench.ours(sys.executable, setup, name))
            bench.start(side)
            turns[name] = _few(bench, side, together)
        found = rounds(bench, turns)
    note = f"{experts} experts, two for a token, in INT4 with a scale for every {GROUP}; {together} requests at once"
    return [measured("serve.quantised_experts_over_plain", found["kept"], found["plain"], note)]


def _few(bench: Bench, side: Side, together: int) -> Callable[[int], float]:
    def ask(number: int) -> float:
        work = bench.work(number, requests=together, together=together)
        return float(bench.round(side, work, f"{together} requests")["rate"])

    return ask


GROUPS = (
    Group(("serve.quantised_experts_over_plain",), partial(_quantised, experts=8, together=8)),
    *(Group((f"serve.moe_mixed64_over_base.e{experts}",), partial(_mixed, experts=experts)) for experts in (8, 32)),
)
