"""Throughput: the bare base, 64 adapters in one batch, and 2,000 adapters through 64 slots, against every peer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.adapters import MADE, make_adapters, make_many, names
from tests.bench.bench import Bench, Group, take_turns
from tests.bench.models import linears
from tests.bench.our_setup import Setup
from tests.bench.places import bench_cache, scratch
from tests.bench.rows import Row, measured, unmeasured
from tests.bench.side import Side, SideFailed
from tests.bench.vllm_venv import PeerUnavailable, vllm_python
from tests.bench.workload import TOGETHER, Work, draw

MANY, FEW = 2000, 5
_WARM = 1_000_000  # seeds of warm-up rounds start here; those of measured rounds are below
_APART = 1000  # offset that gives two kinds of measured rounds different prompts


def _base(bench: Bench) -> list[Row]:
    with scratch("engine") as cache, ExitStack() as sides:
        ours = sides.enter_context(bench.ours(sys.executable, Setup(str(bench.base), str(cache), bench.device)))
        bench.start(ours)
        turns = {"ours": rate(bench, ours, "base", ())}
        why = _join_vllm(bench, sides, turns, 0, {}, ())
        found = rounds(bench, turns)
    return [_against("serve.base_over_vllm_cpu", found, "ours", "vllm", why)]


def _mixed(bench: Bench, rank: int, *, with_peft: bool) -> list[Row]:
    """Compare 64 adapters of one rank in one batch with vLLM, and optionally PEFT."""
    with ExitStack() as sides:
        ours, folders = sides.enter_context(_holding(bench, rank))
        chosen, what = tuple(folders), f"64 of rank {rank}"
        turns = {"mixed": rate(bench, ours, what, chosen)}
        why = _join_vllm(bench, sides, turns, rank, folders, chosen)
        if with_peft:
            setup_of = {"base": str(bench.base), "adapters": folders, "device": bench.device}
            peft = sides.enter_context(bench.side("peft", sys.executable, "tests.bench.peft_peer", setup_of))
            bench.start(peft)
            turns["peft"] = rate(bench, peft, what, chosen)
        found = rounds(bench, turns)
    rows = [_against(f"serve.mixed64_r{rank}_over_vllm_cpu", found, "mixed", "vllm", why)]
    if with_peft:
        rows.append(measured("serve.mixed64_over_peft", found["mixed"], found["peft"], f"rank {rank}"))
    return rows


def _mixed_over_base(bench: Bench, rank: int) -> list[Row]:
    """Compare the same with our bare base; separately, as a peer's rounds take minutes and ours only seconds."""
    with _holding(bench, rank) as (ours, folders):
        turns = {
            "mixed": rate(bench, ours, f"64 of rank {rank}", tuple(folders)),
            "base": rate(bench, ours, "base", ()),
        }
        found = rounds(bench, turns)
    return [measured(f"serve.mixed64_r{rank}_over_base", found["mixed"], found["base"])]


@contextmanager
def _holding(bench: Bench, rank: int) -> Iterator[tuple[Side, dict[str, str]]]:
    """Yield our engine with 64 adapters of one rank in its slots, and each adapter's PEFT folder by name."""
    with bench.doing(f"adapters of rank {rank}"):
        store = make_adapters(bench.base_key, linears(bench.base), rank, MADE)
    folders = {name: str(store / name) for name in names(rank, TOGETHER)}
    with scratch("engine") as cache:
        setup = Setup(str(bench.base), str(cache), bench.device, store=f"file://{store}", max_rank=rank)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            with bench.doing("ours: adapters into slots"):
                ours.ask("hold", names=list(folders), tier="Device")
            yield ours, folders


def _many(bench: Bench) -> list[Row]:
    """Compare 2,000 adapters on local disk, served through 64 slots, with 5 that stay in their slots."""
    many = 4 * TOGETHER if bench.quick else MANY
    with bench.doing(f"{many} adapters"):
        store = make_many(bench.base_key, linears(bench.base), 8, many)
    everyone = names(8, many)
    with scratch("engine") as cache:
        setup = Setup(str(bench.base), str(cache), bench.device, f"file://{store}", max_rank=8, host_bytes=1 << 30)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            with bench.doing(f"ours: {many} adapters taken in once"):
                ours.ask("touch", 1800.0, names=everyone)

            def one(pool: list[str], seed: int) -> Callable[[int], float]:
                def ask(number: int) -> float:
                    requests = TOGETHER if bench.quick else 4 * TOGETHER
                    work = bench.work(seed + number, requests=requests, adapters=draw(number, pool, requests))
                    return float(bench.round(ours, work, f"drawn from {len(pool)}")["rate"])

                return ask

            found = rounds(bench, {"many": one(everyone, 0), "few": one(everyone[:FEW], _APART)})
    return [measured("serve.distinct2000_over_5", found["many"], found["few"], f"{many} of rank 8 over 64 slots")]


def _join_vllm(
    bench: Bench,
    sides: ExitStack,
    turns: dict[str, Callable[[int], float]],
    rank: int,
    folders: dict[str, str],
    chosen: tuple[str, ...],
) -> str:
    """Add vllm-cpu to a comparison; return the reason if it is not available, otherwise an empty string."""
    try:
        if bench.device != "cpu":
            raise PeerUnavailable(f"vllm-cpu knows no device {bench.device}")
        peer = sides.enter_context(vllm(bench, rank, folders))
        bench.start(peer)
    except (PeerUnavailable, SideFailed) as error:
        bench.steps.say(f"peer not available: {error}")
        return f"peer not available: {str(error).splitlines()[0]}"
    turns["vllm"] = rate(bench, peer, f"64 of rank {rank}" if rank else "base", chosen)
    return ""


@contextmanager
def vllm(bench: Bench, rank: int, folders: dict[str, str]) -> Iterator[Side]:
    """Yield vllm-cpu's process, not started yet. Raises PeerUnavailable."""
    python: Path = vllm_python(bench.steps.say)
    setup = {"base": str(bench.base), "rank": rank, "adapters": folders, "context": 256}
    environment = {
        "VLLM_CACHE_ROOT": str(bench_cache() / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with bench.side("vllm", str(python), "tests.bench.vllm_cpu", setup, **environment) as side:
        yield side


def rate(bench: Bench, side: Side, what: str, adapters: tuple[str, ...]) -> Callable[[int], float]:
    """Return a function that runs one round at a side, by its number, and returns tokens per second."""

    def ask(number: int) -> float:
        work: Work = bench.work(number, adapters=adapters)
        return float(bench.round(side, work, what)["rate"])

    return ask


def rounds(bench: Bench, turns: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Return the rates of all rounds, after one warm-up round of each side."""
    for ask in turns.values():
        ask(_WARM)
    return take_turns(bench.rounds, turns)


def _against(metric: str, found: dict[str, list[float]], ours: str, theirs: str, why: str) -> Row:
    if theirs not in found:
        return unmeasured(metric, why, found[ours])
    return measured(metric, found[ours], found[theirs])


GROUPS: tuple[Group, ...] = (
    Group(("serve.base_over_vllm_cpu",), _base),
    Group(
        ("serve.mixed64_r8_over_vllm_cpu", "serve.mixed64_over_peft"), lambda bench: _mixed(bench, 8, with_peft=True)
    ),
    Group(("serve.mixed64_r8_over_base",), lambda bench: _mixed_over_base(bench, 8)),
    Group(("serve.mixed64_r32_over_vllm_cpu",), lambda bench: _mixed(bench, 32, with_peft=False)),
    Group(("serve.mixed64_r32_over_base",), lambda bench: _mixed_over_base(bench, 32)),
    Group(("serve.distinct2000_over_5",), _many),
)
