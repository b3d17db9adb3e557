"""Compares the kernels for GPUs with plain torch on a few random rows, on the device that is to run them."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import torch

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import LayerGroups, pages_for
from mint_engine.adapters.adapter import Module
from mint_engine.gpu.attend import SPLIT
from mint_engine.gpu.kernels import GpuKernels
from mint_engine.gpu.lora import FEW, GpuRows
from mint_engine.model.attention import attend_planned
from mint_engine.model.attention_style import Style
from mint_engine.model.cache import KvCache, LatentCache
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.paged import plan_attention
from mint_engine.model.selection import choose, positions_of
from mint_engine.model.span import Span
from mint_engine.residency.slots import Slots

# Largest difference between the two, relative to the norm of plain torch's: by rounding alone.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_COUNT, _MAX_RANK = 3, 20  # slots
_MODULES = {"plain": Module("plain", 1040, 144), "stack": Module("stack", 48, 80, experts=3)}
# Positions and lengths of requests' spans; of latents', all but the first, which so stays the first, see more than an
# indexer chooses.
_PARTS = (0, 1), (40, 1), (SPLIT + 40, 1), (0, 70), (21, 12)
_LATENT_PARTS, _CHOSEN = ((40, 1), (SPLIT + 40, 1), (SPLIT + 25, 6)), SPLIT + 20
_ONE_GROUP = LayerGroups(1, (None,), ((0, 0),))
_RANKS = ((3, 20), (16, 0), (0, 5))  # of the modules, by slot; 0: not targeted


def prove(kernels: GpuKernels, dtype: torch.dtype, device: torch.device, *, latents: bool) -> None:
    """Compare what kernels compute on the device with plain torch. Raises UnsupportedBase if they differ.

    Of those that attend, only the ones for what a base caches: `latents`, or keys and values.
    """
    with torch.inference_mode():
        attended = (_latents if latents else _attention)(kernels, dtype, device)
        for what, found, expected in chain(_adapters(dtype, device), attended):
            difference = float((found.float() - expected.float()).norm() / expected.float().norm())
            if not difference <= TOLERANCE[dtype]:
                raise UnsupportedBase(
                    f"{what} in {dtype} on {device}",
                    f"differs from plain torch by {difference:.3g} of its norm, at most {TOLERANCE[dtype]:.3g} by "
                    "rounding",
                )


Compared = tuple[str, torch.Tensor, torch.Tensor]  # what, as kernels compute it, and as plain torch does


def _adapters(dtype: torch.dtype, device: torch.device) -> Iterator[Compared]:
    """Compare few rows and many, of adapters of several ranks, in a plain module and in a stack of experts."""
    draw = torch.Generator().manual_seed(1)
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
            yield f"the product of {count} rows with adapters", y, expected


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


def _attention(kernels: GpuKernels, dtype: torch.dtype, device: torch.device) -> Iterator[Compared]:
    """Compare decoding rows with short and long pasts, and chunks of prompts, for each style of attention."""
    draw = torch.Generator().manual_seed(2)
    queries, keys, size, (spans, count, pages) = 6, 2, 24, _spans(_PARTS, draw)
    cache = KvCache(_ONE_GROUP, keys, size, pages, dtype, device)
    cache.pool.copy_(torch.randn(cache.pool.shape, generator=draw))
    query = torch.randn(count, queries, size, generator=draw).to(device, dtype).transpose(0, 1)
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
        yield what, own, plain


def _spans(parts: Sequence[tuple[int, int]], draw: torch.Generator) -> tuple[list[Span], int, int]:
    """Return spans at these positions and of these lengths, their rows, and their pages: in any order, from 1 on."""
    pages = [pages_for(position + length) for position, length in parts]
    order = (1 + torch.randperm(sum(pages), generator=draw)).tolist()
    rows, firsts = [0], [0]
    for each, (_, length) in zip(pages, parts, strict=True):
        firsts.append(firsts[-1] + each)
        rows.append(rows[-1] + length)
    spans = [
        Span(row, length, position, order[start:stop], -1)
        for row, (position, length), (start, stop) in zip(rows[:-1], parts, pairwise(firsts), strict=True)
    ]
    return spans, rows[-1], sum(pages)


def _latents(kernels: GpuKernels, dtype: torch.dtype, device: torch.device) -> Iterator[Compared]:
    """Compare attention over latents, of all that rows see and of what an indexer's scores choose, and the scores."""
    draw = torch.Generator().manual_seed(3)
    heads, scale = 5, 0.2
    for most in (None, _CHOSEN):
        sizes = LatentSizes(24, 8, expanded=200, index=16 if most else 0, most=most)
        spans, count, pages = _spans(_LATENT_PARTS, draw)
        cache = LatentCache(_ONE_GROUP, sizes, pages, dtype, device)
        cache.pool.copy_(torch.randn(cache.pool.shape, generator=draw))
        work = plan_attention(spans, cache, device, kernels).of(0).latents
        assert work is not None  # noqa: S101 - chunks are short
        seen, past = _pasts(spans, cache.of(0), device)
        positions = None
        if most is not None:
            index = torch.randn(count, heads, sizes.index, generator=draw).to(device, dtype)
            weights = torch.randn(count, heads, generator=draw).to(device)
            scores = work.score(index, weights, cache.of(0), sizes.width - sizes.index, slice(None), seen.shape[1])
            products = torch.einsum("njd,nld->njl", index.float(), past[..., -sizes.index :]).relu()
            expected = (products * weights[..., None]).sum(1)
            yield "an indexer's scores", scores.masked_fill(~seen, 0.0), expected.masked_fill(~seen, 0.0)
            choice = choose(scores, seen, most)
            positions, seen = positions_of(choice, most), choice
        query = torch.randn(count, heads, sizes.latent + sizes.rotated, generator=draw).to(device, dtype)
        own = work.attend(query, cache.of(0), sizes.latent, scale, positions)
        scored = torch.einsum("nqd,nld->nql", query.float(), past[..., : query.shape[2]]) * scale
        given = torch.softmax(scored.masked_fill(~seen[:, None], -torch.inf), -1)
        plain = torch.einsum("nql,nlc->nqc", given, past[..., : sizes.latent])
        yield "latent attention" if most is None else "sparse latent attention", own, plain


def _pasts(spans: Sequence[Span], pool: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each row sees [n, N] bool, and the rows of the cache there [n, N, W] float32."""
    longest = max(span.position + span.length for span in spans)
    past = torch.zeros((sum(span.length for span in spans), longest, pool.shape[2]), device=device)
    seen = torch.zeros(past.shape[:2], dtype=torch.bool, device=device)
    for span in spans:
        held = pool[torch.tensor(span.pages, device=device)].flatten(0, 1).float()[: span.position + span.length]
        past[span.row : span.row + span.length, : held.shape[0]] = held
        for at in range(span.length):
            seen[span.row + at, : span.position + at + 1] = True
    return seen, past
