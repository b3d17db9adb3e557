"""Loading an adapter from local disk into a live slot: packed, from PEFT's files, or as one memcpy; and cached bytes.

Files are in the page cache for both sides, as for an adapter that was used before: this compares the work of loading,
not the disk.
"""

import sys
from pathlib import Path
from statistics import median

from tests.bench.adapters import MADE, WEIGHTS, make_adapters, names
from tests.bench.bench import Bench, Group
from tests.bench.models import linears
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured
from tests.bench.shapes import MOE, moe_30b_a3b
from tests.bench.side import Side

_MS = 1000.0
_ROUNDS = 7  # rounds are short
_CACHED = 32  # adapters whose memory is measured


def _dense(bench: Bench) -> list[Row]:
    return _loads(bench, "r32", _store(bench), str(bench.base), rank=32, count=16)


def _moe(bench: Bench) -> list[Row]:
    with bench.doing("adapters of 37,248 tensors, in the layout of a 30B-A3B"):
        store = make_adapters(MOE, moe_30b_a3b(), 1, 3)
    return _loads(bench, "moe", store, MOE, rank=1, count=3)


def _store(bench: Bench) -> Path:
    with bench.doing("adapters of rank 32"):
        return make_adapters(bench.base_key, linears(bench.base), 32, MADE)


def _loads(bench: Bench, kind: str, store: Path, base: str, rank: int, count: int) -> list[Row]:
    """Measure loading `count` adapters into as many slots, alternating between the ways to load."""
    chosen = names(rank, count)
    with scratch("loads") as cache:
        setup = {
            "cache": str(cache),
            "device": bench.device,
            "rank": rank,
            "base": base,
            "folders": [str(store / name) for name in chosen],
        }
        with bench.side("loads", sys.executable, "tests.bench.our_loads", setup) as side:
            bench.start(side)
            with bench.doing(f"{kind}: packed, unpacked, memcpy") as step:
                side.ask("round")  # warm-up
                rounds = [side.ask("round") for _ in range(_ROUNDS)]
                streamed = [side.ask("stream", number=number) for number in range(_ROUNDS)]
                weighed = side.ask("weigh")
                step.note = "ms " + ", ".join(f"{way} {rounds[-1][way] * _MS:.2f}" for way in rounds[-1])
    ways = {way: [found[way] * _MS for found in rounds] for way in rounds[0]}
    size = (store / chosen[0] / WEIGHTS).stat().st_size / 1e6
    middle = {way: median(found) for way, found in ways.items()}
    told = f"{size:.0f} MB; checked and packed anew it takes {middle['taken_in']:.0f} ms"
    read = f"{size:.0f} MB; a slot is then read in {middle['read']:.2f} ms, a copied one in {middle['read_copy']:.2f}"
    files = sum((store / name / WEIGHTS).stat().st_size for name in chosen)
    held = max(weighed["grown"], weighed["counted"])
    speeds = {way: [found[way] / 1e6 for found in streamed] for way in streamed[0]}
    return [
        measured(_unpacked(kind), ways["packed"], ways["unpacked"], told),
        measured(f"load.packed_over_memcpy.{kind}", ways["packed"], ways["memcpy"], read),
        measured(f"load.streams_over_disk.{kind}", speeds["loads"], speeds["direct"], f"{count} at {size:.0f} MB"),
        measured(
            f"load.host_bytes_over_file.{kind}", [held / count / 1e6], [files / count / 1e6], f"mean of {count}"
        ),
    ]


def _weigh(bench: Bench) -> list[Row]:
    """Measure the process's growth per adapter in host memory, or the engine's own count if that is larger."""
    store, chosen = _store(bench), names(32, _CACHED)
    files = sum((store / name / WEIGHTS).stat().st_size for name in chosen)
    with scratch("engine") as cache:
        setup = Setup(str(bench.base), str(cache), bench.device, f"file://{store}", 32, slots=4)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            with bench.doing("ours: adapters taken in once"):
                ours.ask("hold", names=chosen, tier="Disk")
            before = _memory(ours)
            with bench.doing("ours: adapters into host memory"):
                ours.ask("hold", names=chosen, tier="Host")
                ours.ask("touch", names=chosen)  # touches every page of them
            after = _memory(ours)
    grown = after["resident"] - before["resident"] - (after["slot_bytes"] - before["slot_bytes"])
    held = max(grown, after["host"] - before["host"]) / _CACHED / 1e6
    note = f"mean of {_CACHED} of rank 32; the process grew by {grown / files:.2f} of the files' bytes"
    return [measured("load.host_bytes_over_file", [held], [files / _CACHED / 1e6], note)]


def _memory(ours: Side) -> dict[str, int]:
    return {key: int(value) for key, value in ours.ask("memory").items()}


def _of(kind: str) -> tuple[str, ...]:
    ways = ("packed_over_memcpy", "streams_over_disk", "host_bytes_over_file")
    return (_unpacked(kind), *(f"load.{name}.{kind}" for name in ways))


def _unpacked(kind: str) -> str:
    """Return the name of the packed-over-unpacked promise; experts have their own."""
    return "load.packed_over_unpacked_moe" if kind == "moe" else f"load.packed_over_unpacked.{kind}"


GROUPS = (
    Group(_of("r32"), _dense),
    Group(_of("moe"), _moe),
    Group(("load.host_bytes_over_file",), _weigh),
)
