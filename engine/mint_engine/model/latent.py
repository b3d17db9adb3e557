"""Multi-head latent attention over its compressed cache (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

A token leaves one latent, from which `kv_b_proj` makes every head's key and value, and one rotated key for all heads.
transformers expands everything in its cache at each step. Here the models' `expand_kv` is bypassed, so that `attend`
gets the step's latents unchanged, and then takes the cheaper of two ways:

- absorb: the query is mapped by the key half of `kv_b_proj` to the latents' space, attends there, and the result
  comes back through the value half. Cost grows only with the rows of the step: for decoding and short chunks.
- expand: keys and values are computed from all latents, once for all rows of a chunk: for long chunks.

An adapter on `kv_b_proj` adds to both halves, by the row's own slot when absorbed and by the chunk's when expanded.

Kernels for GPUs (`mint_engine.gpu.latent`) attend in the latents' space, at once for all rows that absorb. Torch maps
queries there and results back, adapters' parts included, and computes the chunks that expand.

Letters in shapes: T tokens, B rows of requests that decode, Q heads, C latent size, E rotated size, N cached tokens,
K size of a head's key without its rotated part, V of its value, R rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mint_contracts.errors import UnsupportedBase
from mint_engine.model import upcast
from mint_engine.model.cache import LatentCache
from mint_engine.model.lora import Rows, merge_spans, sort_rows
from mint_engine.model.paged import Chunk, Decodes, PagedAttention, tiles
from mint_engine.model.selection import Selection
from mint_engine.model.span import Span
from mint_engine.residency.slots import ABSENT, Slots

if TYPE_CHECKING:
    from mint_engine.gpu.latent import LatentWork


@dataclass(frozen=True)
class Up:
    """One layer's `kv_b_proj`: base weight [Q, K + V, C], and the slots' module that adds to it, if any does."""

    weight: torch.Tensor
    keys: int  # K
    slots: Slots
    module: int | None

    @property
    def latent(self) -> int:
        """C."""
        return int(self.weight.shape[2])


@dataclass(frozen=True)
class _Delta:
    """What adapters add to rows: A [n, R, C], B transposed [n, R, Q, K + V], scalings [n]; n is 1 if all share."""

    rows: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scalings: torch.Tensor


def is_latent(module: nn.Module) -> bool:
    """Whether an attention module caches compressed keys and values."""
    return hasattr(module, "expand_kv") and hasattr(module, "kv_b_proj")


def up_projection(module: Any, slots: Slots, path: str) -> Up:
    """Return the `kv_b_proj` of the attention module at `path`. Raises UnsupportedBase if it has a bias."""
    linear = module.kv_b_proj
    if linear.bias is not None:
        raise UnsupportedBase(path, "has a biased kv_b_proj, which is not supported")
    weight = linear.weight.view(module.num_heads, -1, linear.weight.shape[1])
    return Up(weight, int(module.qk_nope_head_dim), slots, slots.index.get(f"{path}.kv_b_proj"))


def attend_latent(
    module: Any,
    query: torch.Tensor,
    latent: torch.Tensor,
    rotated: torch.Tensor,
    selection: object,
    scale: float,
    paged: PagedAttention,
) -> torch.Tensor:
    """Queries [Q, T, K + E], the step's latents [T, C] and rotated keys [T, E] -> [1, T, Q, V]."""
    up: Up = module.mint_up
    cache, layer = paged.cache, int(module.layer_idx)
    assert isinstance(cache, LatentCache)  # noqa: S101 - checked by the one caller
    chosen = selection if isinstance(selection, Selection) else Selection()
    cache.write(layer, paged.places, latent, 0)
    cache.write(layer, paged.places, rotated, latent.shape[1])
    out = query.new_empty(query.shape[1], query.shape[0], up.weight.shape[1] - up.keys)  # [T, Q, V]
    width = latent.shape[1] + rotated.shape[1]
    if paged.latents is not None:
        pages, positions = cache.of(layer), chosen.positions
        _attend_by_kernels(out, query, up, paged, paged.latents, pages, positions, scale)
    for decodes, choice in zip(paged.decodes, chosen.of_decodes(paged.decodes), strict=True):
        rows = cache.read(layer, decodes.table)[:, :width]
        out[decodes.rows] = _decode(query, rows, up, paged, decodes, choice, scale)
    for chunk, choice in zip(paged.chunks, chosen.of_chunks(paged.chunks), strict=True):
        rows = cache.read(layer, chunk.pages)[:, :width]
        visible = chunk.visible() if choice is None else chunk.visible() & choice
        part = query[:, chunk.start : chunk.stop]
        compute = _absorb_chunk if cache.sizes.absorbs(part.shape[1]) else _expand_chunk
        out[chunk.start : chunk.stop] = compute(part, rows, up, paged, chunk, visible, scale)
    return out.unsqueeze(0)


def _attend_by_kernels(
    out: torch.Tensor,
    query: torch.Tensor,
    up: Up,
    paged: PagedAttention,
    work: "LatentWork",
    pages: torch.Tensor,
    chosen: torch.Tensor | None,
    scale: float,
) -> None:
    """Attend for the rows of `work`, into theirs of out [T, Q, V]."""
    deltas, rows = list(_deltas(up, work.slots, paged)), query.transpose(0, 1)
    absorbed = _absorb(rows if work.rows is None else rows.index_select(0, work.rows), up, deltas)
    values = _release(work.attend(absorbed, pages, up.latent, scale, chosen), up, deltas)
    if work.rows is None:
        out.copy_(values)
    else:
        out.index_copy_(0, work.rows, values)


def _decode(
    query: torch.Tensor,
    rows: torch.Tensor,
    up: Up,
    paged: PagedAttention,
    decodes: Decodes,
    chosen: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """-> [B, Q, V]; rows [B * N, C + E]."""
    count = decodes.rows.shape[0]
    past = rows.view(count, -1, rows.shape[1])  # [B, N, C + E]
    visible = decodes.visible() if chosen is None else decodes.visible() & chosen
    deltas = list(_deltas(up, decodes.slots, paged))
    absorbed = _absorb(query.index_select(1, decodes.rows).transpose(0, 1), up, deltas)  # [B, Q, C + E]
    scores = torch.matmul(absorbed, past.transpose(1, 2)) * scale  # [B, Q, N]
    weights = _weigh(scores, visible[:, None])
    return _release(torch.matmul(weights, past[..., : up.latent]), up, deltas)


def _absorb_chunk(
    query: torch.Tensor,
    rows: torch.Tensor,
    up: Up,
    paged: PagedAttention,
    chunk: Chunk,
    visible: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Queries [Q, T, K + E] over rows [N, C + E] -> [T, Q, V]."""
    deltas = list(_deltas(up, (chunk.slot,) * query.shape[1], paged))
    absorbed = _absorb(query.transpose(0, 1), up, deltas)  # [T, Q, C + E]
    attended = absorbed.new_empty(*absorbed.shape[:2], up.latent)
    for tile in tiles(absorbed.shape[0], absorbed.shape[1] * rows.shape[0]):
        scores = torch.matmul(absorbed[tile], rows.t()) * scale  # [T, Q, N]
        attended[tile] = torch.matmul(_weigh(scores, visible[tile, None]), rows[:, : up.latent])
    return _release(attended, up, deltas)


def _expand_chunk(
    query: torch.Tensor,
    rows: torch.Tensor,
    up: Up,
    paged: PagedAttention,
    chunk: Chunk,
    visible: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Queries [Q, T, K + E] over rows [N, C + E] -> [T, Q, V]."""
    heads, wide, _ = up.weight.shape
    latents, rotated = rows[:, : up.latent], rows[:, up.latent :]
    deltas = [
        ((latents @ delta.a[0].t()) * delta.scalings[0], delta.b[0]) for delta in _deltas(up, (chunk.slot,), paged)
    ]
    attended = query.new_empty(*query.shape[:2], wide - up.keys)
    # As many heads at once as there is room for their keys and values, and for their scores.
    for tile in tiles(heads, rows.shape[0] * max(wide, query.shape[1])):
        made = functional.linear(latents, up.weight[tile].flatten(0, 1))
        for middle, b in deltas:
            made = torch.addmm(made, middle, b[:, tile].flatten(1))
        both = made.view(rows.shape[0], -1, wide).transpose(0, 1)  # [Q, N, K + V]
        keys = torch.cat((both[..., : up.keys], rotated.expand(both.shape[0], -1, -1)), dim=-1)
        attended[tile] = upcast.attend(
            query[None, tile], keys[None], both[None, ..., up.keys :], attn_mask=visible, scale=scale
        )[0]
    return attended.transpose(0, 1)


def _absorb(query: torch.Tensor, up: Up, deltas: list[_Delta]) -> torch.Tensor:
    """Map queries [n, Q, K + E] to the latents' space, [n, Q, C + E]."""
    plain, rotated = query[..., : up.keys], query[..., up.keys :]
    absorbed = torch.matmul(plain.transpose(0, 1), up.weight[:, : up.keys]).transpose(0, 1)  # [n, Q, C]
    for delta in deltas:
        own, b = plain.index_select(0, delta.rows), delta.b[..., : up.keys]
        shared = b.shape[0] == 1
        middle = torch.einsum("nqk,rqk->nqr", own, b[0]) if shared else torch.einsum("nqk,nrqk->nqr", own, b)
        middle = middle * delta.scalings[:, None, None]
        absorbed = absorbed.index_add(0, delta.rows, torch.matmul(middle, delta.a))
    return torch.cat((absorbed, rotated), dim=-1)


def _release(attended: torch.Tensor, up: Up, deltas: list[_Delta]) -> torch.Tensor:
    """Map results of attention in the latents' space, [n, Q, C], to the heads' values [n, Q, V]."""
    values = torch.matmul(attended.transpose(0, 1), up.weight[:, up.keys :].transpose(1, 2)).transpose(0, 1)
    for delta in deltas:
        middle = torch.matmul(attended.index_select(0, delta.rows), delta.a.transpose(1, 2))  # [n, Q, R]
        middle = middle * delta.scalings[:, None, None]
        b = delta.b[..., up.keys :]
        shared = b.shape[0] == 1
        added = torch.einsum("nqr,rqv->nqv", middle, b[0]) if shared else torch.einsum("nqr,nrqv->nqv", middle, b)
        values = values.index_add(0, delta.rows, added)
    return values


def _weigh(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    scores = scores.masked_fill(~visible, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _sort(owners: tuple[int, ...], slots: Slots, paged: PagedAttention) -> Rows | None:
    """Return one row for each of these slots, sorted; done once per step."""
    if owners not in paged.sorted:
        spans = [Span(at, 1, 0, (), slot) for at, slot in enumerate(owners)]
        paged.sorted[owners] = sort_rows(merge_spans(spans), slots)
    found: Rows | None = paged.sorted[owners]
    return found


def _deltas(up: Up, owners: tuple[int, ...], paged: PagedAttention) -> Iterator[_Delta]:
    """Yield what adapters add to rows that belong to these slots, one row each."""
    rows = _sort(owners, up.slots, paged) if up.module is not None else None
    if up.module is None or rows is None:
        return
    heads, wide, latent = up.weight.shape
    for segment in rows.long:
        part = up.slots.part(up.module, segment.slot)
        if part is not None:
            at = torch.arange(segment.start, segment.start + segment.length, device=up.weight.device)
            # Filled there: a copy of the host's number would wait for all that was computed before, in each layer.
            scale = float(up.slots.scalings[up.module, segment.slot])
            scaling = torch.full((1,), scale, dtype=up.slots.dtype, device=up.weight.device)
            yield _Delta(at, part[0][None], part[1].view(1, -1, heads, wide), scaling)
    for gather in rows.gathers:
        place, rank = int(up.slots.places[up.module, gather.example]), int(up.slots.ranks[up.module, gather.example])
        if place != ABSENT:
            count, middle = gather.rows.shape[0], rank * latent
            packed = up.slots.memory[:, place : place + rank * (latent + heads * wide)].index_select(0, gather.slots)
            a, b = packed[:, :middle].view(count, rank, latent), packed[:, middle:].view(count, rank, heads, wide)
            yield _Delta(gather.rows, a, b, gather.scalings[up.module])
