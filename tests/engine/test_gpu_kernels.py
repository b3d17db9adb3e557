"""The kernels for GPUs, interpreted, against their formulas row by row; and compiled for GPUs that are not here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_engine.adapters.adapter import Module
from mint_engine.gpu import find, lora, proof
from mint_engine.gpu.find import find_gpu_kernels
from mint_engine.gpu.lora import TILE, GpuRows
from mint_engine.residency.slots import NO_SLOT, Slots
from tests.engine.device_double import CUDA, standing_in
from tests.engine.made import Delta, pack, unpack

PLAIN, WIDE, STACK = Module("plain", 12, 20), Module("wide", 1100, 8), Module("stack", 20, 12, experts=3)
MODULES = {module.path: module for module in (PLAIN, WIDE, STACK)}
COUNT, MAX_RANK = 4, 20


def adapter(rank: int, modules: tuple[Module, ...], seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    deltas = {}
    for module in modules:
        shape = (module.experts,) if module.experts else ()
        a = torch.randn(*shape, rank, module.in_features, generator=draw)
        b = torch.randn(*shape, module.out_features, rank, generator=draw)
        deltas[module.path] = Delta(a, b, scaling=0.5 + seed)
    return pack(MODULES, deltas)


@settings(max_examples=25)
@given(
    ranks=st.lists(st.integers(1, MAX_RANK), min_size=COUNT, max_size=COUNT),
    targets=st.lists(
        st.sets(st.sampled_from([PLAIN, WIDE, STACK])).map(tuple), min_size=COUNT, max_size=COUNT
    ),
    runs=st.lists(st.tuples(st.integers(NO_SLOT, COUNT - 1), st.integers(1, 9)), min_size=1, max_size=6, unique_by=lambda run: run[0]),
    tile=st.sampled_from([1, TILE]),
)  # fmt: skip
def test_every_row_adds_its_own_adapter(
    ranks: list[int], targets: list[tuple[Module, ...]], runs: list[tuple[int, int]], tile: int
) -> None:
    owners = [slot for slot, length in runs for _ in range(length)]
    tenants = {slot: adapter(ranks[slot], targets[slot], slot) for slot in range(COUNT) if targets[slot]}
    draw = torch.Generator().manual_seed(9)
    with standing_in(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "FEW", 0 if tile == TILE else len(owners))
        slots = Slots(MODULES, COUNT, MAX_RANK, torch.float32, CUDA)
        for slot, packed in tenants.items():
            slots.load(slot, packed)
        for at, module in enumerate(MODULES.values()):
            experts = torch.sort(torch.randint(0, 3, (len(owners),), generator=draw)).values
            order = torch.argsort(experts, stable=True)
            of = torch.tensor(owners) if not module.experts else torch.tensor(owners)[order]
            x = torch.randn(len(owners), module.in_features, generator=draw)
            y = torch.randn(len(owners), module.out_features, generator=draw)
            expected = y.clone()
            for row, slot in enumerate(of.tolist()):
                delta = unpack(tenants[slot]).get(module.path) if slot in tenants else None
                if delta is not None:
                    a, b = (each[experts[row]] if module.experts else each for each in (delta.a, delta.b))
                    expected[row] += (b @ (a @ x[row])) * delta.scaling
            found = y.to(CUDA)
            filled = torch.where(
                torch.tensor([slots.filled[slot] > 0 and slot >= 0 for slot in of.tolist()]), of, NO_SLOT
            )
            GpuRows(filled.to(CUDA), experts.to(CUDA) if module.experts else None).add(found, x.to(CUDA), slots, at)
            assert torch.allclose(found.cpu(), expected, atol=1e-4, rtol=1e-4)
