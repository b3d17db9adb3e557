"""One process that loads the same adapters in each way: packed, from PEFT's files, or as one memcpy of equal size.

The engine's way has its own slots, which on a CPU hold the packed files' pages. The two other ways fill slots that
own their memory and have been written before, so that neither waits for the system to allocate memory.

python -m tests.bench.our_loads '{"cache": ..., "device": ..., "rank": 8, "base": ..., "folders": []}'
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from mint_contracts.source import Source
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed
from mint_engine.model.device import choose_device, count_threads
from mint_engine.residency.climb import COPY_THREADS
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.loading import Loader
from mint_engine.residency.slots import Slots
from tests.bench.adapters import WEIGHTS
from tests.bench.memory import forget_all, read_directly, resident_bytes
from tests.bench.models import linears
from tests.bench.protocol import Answer, serve
from tests.bench.shapes import MOE, moe_30b_a3b

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.([^.]+)")
_PREFIX = "base_model.model."
Target = tuple[str, str, int, int, int, tuple[int, int]]


class Loads:
    """Slots, and a loader with its own disk tier."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(count_threads())
        self._cache = Path(setup["cache"])
        self._folders = [Path(folder) for folder in setup["folders"]]
        self._linears = moe_30b_a3b() if setup["base"] == MOE else linears(Path(setup["base"]))
        modules = stacked(self._linears)
        device = choose_device(setup["device"])
        self._slots, self._copies = (
            Slots(modules, len(self._folders), setup["rank"], torch.bfloat16, device) for _ in range(2)
        )
        self._fit = Fit(modules=modules, max_rank=setup["rank"])
        self._disk = DiskTier(self._cache / "adapters", 64 << 30)
        self._loader = Loader(self._disk, self._fit, torch.bfloat16)
        self._targets: list[Target] = []

    def start(self) -> Answer:
        """Load every adapter once, and check that both ways fill a slot alike."""
        for slot in range(len(self._folders)):
            self._copies.load(slot, replace(self._packed(slot), file=None))
        wanted = self._copies.memory[0].clone()
        self._targets = self._find_targets()
        self._copies.memory[0, : self._copies.filled[0]].zero_()
        self._unpacked(0)
        alike = all(
            torch.equal(ours, theirs)
            for module in range(len(self._slots.modules))
            for ours, theirs in zip(
                self._slots.part(module, 0) or (), self._copies.part(module, 0) or (), strict=True
            )
        )
        if not alike or not torch.equal(self._copies.memory[0], wanted):
            raise ValueError("loading PEFT's files by tensors fills a slot otherwise than loading packed ones")
        return {}

    def round(self) -> Answer:
        """Return median seconds of loading one adapter by each way in turn, of taking one in, and of reading one."""
        ways: dict[str, Callable[[int], object]] = {
            "packed": self._packed,
            "unpacked": self._unpacked,
            "memcpy": self._memcpy,
            "read": lambda slot: self._read(self._slots, slot),
            "read_copy": lambda slot: self._read(self._copies, slot),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        count = len(self._folders)
        for turn in range(count):
            for number, (way, load) in enumerate(ways.items()):
                slot = (turn + number * count // len(ways)) % count  # never one that is still in a CPU cache
                self._settle()
                began = time.perf_counter()
                load(slot)
                self._settle()
                taken[way].append(time.perf_counter() - began)
        return {**{way: median(times) for way, times in taken.items()}, "taken_in": self._take_in()}

    def stream(self, number: int) -> Answer:
        """Return bytes per second of loading all adapters from disk into slots, and of reading their files directly.

        Each begins with nothing of the files in memory. They alternate in going first, as layers below the disk may
        have caches of their own.
        """
        paths = sorted((self._cache / "adapters").glob("*.mint"))
        size = sum(path.stat().st_size for path in paths)
        ways: list[tuple[str, Callable[[Any], object], Sequence[Any]]] = [
            ("loads", self._packed, range(len(self._folders))),
            ("direct", read_directly, paths),
        ]
        found: dict[str, float] = {}
        with ThreadPoolExecutor(COPY_THREADS) as threads:
            for way, work, each in ways if number % 2 else reversed(ways):
                for slot in range(len(self._folders)):
                    self._slots.clear(slot)  # mapped pages could not be dropped
                forget_all(paths)
                began = time.perf_counter()
                list(threads.map(work, each))
                found[way] = size / (time.perf_counter() - began)
        return {"loads": found["loads"], "direct": found["direct"]}

    def weigh(self) -> Answer:
        """Return this process's growth with every adapter in host memory and read once, and the tier's own count."""
        host, before = HostTier(64 << 30), resident_bytes()
        for folder in self._folders:
            source = Source(f"file://{folder}")
            packed = self._loader.load(source)
            host.put((folder.name, source), packed)
            packed.run.view(torch.float32).sum()
        return {"grown": resident_bytes() - before, "counted": host.ledger.used}

    def _packed(self, slot: int) -> Packed:
        """Load an adapter into a slot as the engine does."""
        source = Source(f"file://{self._folders[slot]}")
        with self._disk.using(source):
            packed = self._loader.load(source)
            self._slots.load(slot, packed)
        return packed

    def _unpacked(self, slot: int) -> None:
        """Do the minimum that PEFT's layout needs: no checks, no digest, one copy per tensor into the slot."""
        tensors, row = load_file(self._folders[slot] / WEIGHTS), self._copies.memory[slot]
        for name_a, name_b, a, b, rank, (wide, high) in self._targets:
            row[a : a + rank * wide].view(rank, wide).copy_(tensors[name_a])
            row[b : b + rank * high].view(rank, high).copy_(tensors[name_b].t())

    def _memcpy(self, slot: int) -> None:
        """Copy as many bytes at once between the same kinds of memory: from host memory to the slot's."""
        other = self._copies.memory[(slot + 1) % len(self._folders)]
        count = self._copies.filled[slot]
        self._copies.memory[slot][:count].copy_(other[:count])

    def _read(self, slots: Slots, slot: int) -> None:
        """Read a complete slot once, as a step does."""
        slots.memory[slot][: slots.filled[slot]].view(torch.float32).sum()

    def _take_in(self) -> float:
        """Return the seconds to check, pack, write and load one adapter that the disk tier does not have."""
        source = Source(f"file://{self._folders[0]}")
        self._disk.drop(source)
        began = time.perf_counter()
        self._packed(0)
        return time.perf_counter() - began

    def _find_targets(self) -> "list[Target]":
        """Return, per linear, PEFT's two names, the offsets of A and B in a slot's row, the rank, and features."""
        slots = self._copies
        found = []
        for path, (wide, high) in self._linears.items():
            expert = _EXPERT.fullmatch(path)
            module, number = (f"{expert[1]}.{expert[3]}", int(expert[2])) if expert else (path, 0)
            at = slots.index[module]
            place, rank, experts = int(slots.places[at, 0]), int(slots.ranks[at, 0]), slots.experts[at]
            a, b = place + number * rank * wide, place + experts * rank * wide + number * rank * high
            name = f"{_PREFIX}{path}.lora_"
            found.append((f"{name}A.weight", f"{name}B.weight", a, b, rank, (wide, high)))
        return found

    def _settle(self) -> None:
        if self._slots.device.type == "cuda":
            torch.cuda.synchronize(self._slots.device)


def stacked(singles: dict[str, tuple[int, int]]) -> dict[str, Module]:
    """Return the modules of a base with these linear layers, experts stacked, in order."""
    modules: dict[str, Module] = {}
    for path, (wide, high) in singles.items():
        expert = _EXPERT.fullmatch(path)
        if expert is None:
            modules[path] = Module(path, wide, high)
        else:
            name, number = f"{expert[1]}.{expert[3]}", int(expert[2])
            modules[name] = Module(name, wide, high, experts=number + 1)
    return modules


if __name__ == "__main__":
    loads = Loads(json.loads(sys.argv[1]))
    serve({"start": loads.start, "round": loads.round, "weigh": loads.weigh, "stream": loads.stream})
