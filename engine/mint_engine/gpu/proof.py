"""Compares the kernels for GPUs with plain torch on a few random rows, on the device that is to run them."""

from itertools import pairwise

import torch

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import LayerGroups, pages_for
from mint_engine.adapters.adapter import Module
from mint_engine.gpu.attend import SPLIT
from mint_engine.gpu.kernels import GpuKernels
from mint_engine.gpu.lora import FEW, GpuRows
from mint_engine.model.attention import Style, attend_planned
from mint_engine.model.cache import KvCache
from mint_engine.model.paged import Span, plan_attention
from mint_engine.residency.slots import Slots

# Largest difference between the two, relative to the norm of plain torch's: by rounding alone.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_COUNT, _MAX_RANK = 3, 20  # slots
_MODULES = {"plain": Module("plain", 1040, 144), "stack": Module("stack", 48, 80, experts=3)}
_RANKS = ((3, 20), (16, 0), (0, 5))  # of the modules, by slot; 0: not targeted


def prove(kernels: GpuKernels, dtype: torch.dtype, device: torch.device) -> None:
    """Compare what kernels compute on the device with plain torch. Raises UnsupportedBase if they differ."""
    with torch.inference_mode():
        for what, found, expected in (*_adapters(dtype, device), *_attention(kernels, dtype, device)):
            difference = float((found.float() - expected.float()).norm() / expected.float().norm())
            if not difference <= TOLERANCE[dtype]:
                raise UnsupportedBase(
                    f"{what} in {dtype} on {device}",
                    f"differs from plain torch by {difference:.3g} of its norm, at most {TOLERANCE[dtype]:.3g} by "
                    "rounding",
                )


Compared = tuple[str, torch.Tensor, torch.Tensor]  # what, as kernels compute it, and as plain torch does


def _adapters(dtype: torch.dtype, device: torch.device) -> list[Compared]:
    """Compare few rows and many, of adapters of several ranks, in a plain module and in a stack of experts."""
    draw, found = torch.Generator().manual_seed(1), list[Compared]()
    slots = Slots(_MODULES, _COUNT, _MAX_RANK, dtype, device)
    slots.memory.copy_(torch.randn(slots.memory.shape, generator=draw) / 8)
    for slot, ranks in enumerate(_RANKS):
        place = 0
        for module, rank in enumerate(ranks):
            if rank:
                slots.places[module, slot], slots.ranks[module, slot] = place, rank
                slots.scalings[module, slot] = 0.5 + slot
                place += rank * slots.experts[module] * sum(slots.shapes[module])
        slots.copy_tables(slot)
    for count in (7, FEW + 9):
        owners = torch.sort(torch.randint(-1, _COUNT, (count,), generator=draw)).values
        experts = torch.arange(count) * slots.experts[1] // count
        order = torch.argsort(experts * (_COUNT + 1) + owners, stable=True)
        for module, (owner, expert) in enumerate(((owners, None), (owners[order], experts[order]))):
            width, height = slots.shapes[module]
            x = (torch.randn(count, width, generator=draw) / 8).to(device, dtype)
            y = torch.randn(count, height, generator=draw).to(device, dtype)
            expected = y + _plainly(x, slots, module, owner, expert)
            GpuRows(owner.to(device), None if expert is None else expert.to(device)).add(y, x, slots, module)
            found.append((f"the product of {count} rows with adapters", y, expected))
    return found


def _plainly(
    x: torch.Tensor, slots: Slots, module: int, owners: torch.Tensor, experts: torch.Tensor | None
) -> torch.Tensor:
    """What adapters add to rows x [T, in], row by row in float32 [T, out]."""
    added = torch.zeros(x.shape[0], slots.shapes[module][1], device=x.device)
    for row, slot in enumerate(owners.tolist()):
        part = slots.part(module, slot) if slot >= 0 else None
        if part is not None:
            a, b = (each.view(slots.experts[module], -1, each.shape[1]) for each in part)
            expert = int(experts[row]) if experts is not None else 0
            added[row] = (x[row].float() @ a[expert].float().t()) * slots.scalings[module, slot] @ b[expert].float()
    return added


def _attention(kernels: GpuKernels, dtype: torch.dtype, device: torch.device) -> list[Compared]:
    """Compare decoding rows with short and long pasts, and chunks of prompts, for each style of attention."""
    draw, found = torch.Generator().manual_seed(2), list[Compared]()
    queries, keys, size, parts = 6, 2, 24, ((0, 1), (40, 1), (SPLIT + 40, 1), (0, 70), (21, 12))
    pages = [pages_for(position + length) for position, length in parts]
    cache = KvCache(LayerGroups(1, (None,), ((0, 0),)), keys, size, sum(pages), dtype, device)
    cache.pool.copy_(torch.randn(cache.pool.shape, generator=draw))
    order, rows = (1 + torch.randperm(sum(pages), generator=draw)).tolist(), [0]
    firsts = [0]
    for each, (_, length) in zip(pages, parts, strict=True):
        firsts.append(firsts[-1] + each)
        rows.append(rows[-1] + length)
    spans = [
        Span(row, length, position, order[start:stop], -1)
        for row, (position, length), (start, stop) in zip(rows[:-1], parts, pairwise(firsts), strict=True)
    ]
    query = torch.randn(rows[-1], queries, size, generator=draw).to(device, dtype).transpose(0, 1)
    sinks = torch.randn(queries, generator=draw).to(device, dtype)
    styles = {
        "attention": Style(0.2, None, None, None),
        "attention with a window and sinks": Style(0.2, 50, None, sinks),
        "attention with a window and a cap": Style(0.2, 30, 4.0, None),
    }
    for what, style in styles.items():
        own, plain = (
            attend_planned(query, 0, plan_attention(spans, cache, device, each).of(0), style)
            for each in (kernels, None)
        )
        found.append((what, own, plain))
    return found
