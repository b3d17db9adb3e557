"""Slots of two modules, adapters for them, and the memory that the rows take."""

from pathlib import Path

import torch

from mint_engine.adapters import packed_file
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.mapped import Opener
from mint_engine.adapters.packed import Packed
from mint_engine.residency.slots import Slots
from tests.engine.made import Delta, pack, unpack

CPU = torch.device("cpu")
LEFT, RIGHT = Module("left", 40_000, 20_000), Module("right", 20_001, 30_003)
MODULES = {module.path: module for module in (LEFT, RIGHT)}
MAX_RANK, COUNT = 8, 3


def adapter(rank: int, modules: tuple[Module, ...] = (LEFT, RIGHT), seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    deltas = {
        module.path: Delta(
            torch.randn(rank, module.in_features, generator=draw),
            torch.randn(module.out_features, rank, generator=draw),
            0.5 + seed,
        )
        for module in modules
    }
    return pack(MODULES, deltas)


def filed(packed: Packed, path: Path) -> Packed:
    with path.open("wb") as file:
        packed_file.write(packed, file)
    return Opener().open(path, "file")


def make_slots() -> Slots:
    return Slots(MODULES, COUNT, MAX_RANK, torch.float32, CPU)


def holds(slots: Slots, slot: int, packed: Packed | None) -> bool:
    """Whether the slot's parts equal the adapter's bit for bit, and nothing lies beyond its end."""
    deltas = unpack(packed) if packed is not None else {}
    for path, module in slots.index.items():
        part, delta = slots.part(module, slot), deltas.get(path)
        if part is None or delta is None:
            if part is not None or delta is not None:
                return False
        elif not (torch.equal(part[0], delta.a) and torch.equal(part[1], delta.b.t())):
            return False
    return not slots.memory[slot, slots.filled[slot] :].any()


def memory_of(slots: Slots) -> int:
    """The bytes of anonymous memory of all rows, excluding files' pages; may include some of their neighbours'."""
    start = slots.memory.data_ptr()
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in (addresses := line.split(maxsplit=1)[0]) and not addresses.endswith(":"):
            first, last = (int(each, 16) for each in addresses.split("-"))
            inside = first < start + slots.memory.nbytes and last > start
        elif inside and line.startswith("Anonymous:"):
            total += int(line.split()[1]) * 1024
    return total
