"""Attention over a packed batch and the paged cache, registered with transformers under the name "mint".

The models' own code computes queries, keys and values for all tokens of a step in one row [1, T]; here each request
attends to its own past. Rows of requests that decode are taken together, padded to the longest; a chunk of a prompt
goes by itself. Letters in shapes: T tokens, B decoding requests, Q query heads, K key/value heads, G = Q / K, D head
size, N cached tokens, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mint_contracts.errors import UnsupportedBase
from mint_engine.cache import KvCache
from mint_engine.pages import NULL_PAGE, PAGE_TOKENS, pages_for

NAME = "mint"

# What models pass along that changes nothing here, and what would change the result and is not computed here.
_HARMLESS = frozenset({"position_ids", "use_cache", "is_causal", "cache", "output_attentions", "layer_idx"})


@dataclass(frozen=True)
class Span:
    """One request's rows of a step: `length` tokens from `position` of its sequence, at `row` of the batch."""

    row: int
    length: int
    position: int
    pages: Sequence[int]
    slot: int


@dataclass(frozen=True)
class Decodes:
    """All spans of one token."""

    rows: torch.Tensor  # [B]
    table: torch.Tensor  # [B * P], padded with the null page
    valid: torch.Tensor  # [B, N] bool: the cached tokens that row may see


@dataclass(frozen=True)
class Chunk:
    """One span of several tokens."""

    start: int
    stop: int
    pages: torch.Tensor  # [P]
    visible: torch.Tensor  # [T, N] bool


@dataclass(frozen=True)
class PagedAttention:
    """One step's plan, sorted out once and used by every layer."""

    cache: KvCache
    places: torch.Tensor  # [T]: where each token's key and value go
    decodes: Decodes | None
    chunks: tuple[Chunk, ...]


def plan_attention(spans: Sequence[Span], cache: KvCache, device: torch.device) -> PagedAttention:
    """Sort a step's spans out; they cover its rows in order."""
    places = [
        span.pages[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
        for span in spans
        for at in range(span.position, span.position + span.length)
    ]
    singles = [span for span in spans if span.length == 1]
    return PagedAttention(
        cache=cache,
        places=torch.tensor(places, device=device),
        decodes=_plan_decodes(singles, device) if singles else None,
        chunks=tuple(_plan_chunk(span, device) for span in spans if span.length > 1),
    )


def register() -> None:
    """Make "mint" known to transformers. No mask is registered beside it, and so none is ever built."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    paged: PagedAttention | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Queries [1, Q, T, D], keys and values [1, K, T, D] -> [1, T, Q, D]; keys and values go to the cache.

    Raises UnsupportedBase when the model asks for something else than causal attention over all of the past.
    """
    refused = sorted(name for name, value in options.items() if value is not None and name not in _HARMLESS)
    if options.get("is_causal") is False or attention_mask is not None or dropout:
        refused.append("an own mask or dropout")
    if paged is None or refused:
        raise UnsupportedBase(
            type(module).__name__,
            f"needs attention with {', '.join(refused) or 'no page table'}, which is not served",
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    cache, scale = paged.cache, query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[1] != cache.heads or key.shape[3] != cache.head_dim or value.shape != key.shape:
        raise UnsupportedBase(type(module).__name__, f"has keys {list(key.shape)} that differ from its configuration")
    cache.write(layer, paged.places, key[0], value[0])
    out = torch.empty_like(query[0])
    if paged.decodes is not None:
        _decode(out, query[0], layer, paged.decodes, cache, scale)
    for chunk in paged.chunks:
        keys, values = cache.read(layer, chunk.pages)
        out[:, chunk.start : chunk.stop] = functional.scaled_dot_product_attention(
            query[:, :, chunk.start : chunk.stop],
            keys[None],
            values[None],
            attn_mask=chunk.visible,
            scale=scale,
            enable_gqa=query.shape[1] != cache.heads,
        )[0]
    return out.transpose(0, 1).unsqueeze(0), None


def _decode(
    out: torch.Tensor, query: torch.Tensor, layer: int, decodes: Decodes, cache: KvCache, scale: float
) -> None:
    """One row each of B requests: out and query are [Q, T, D]."""
    count = decodes.rows.shape[0]
    keys, values = (
        each.view(cache.heads, count, -1, cache.head_dim) for each in cache.read(layer, decodes.table)
    )  # [K, B, N, D]
    grouped = query.index_select(1, decodes.rows).view(cache.heads, -1, count, cache.head_dim).transpose(1, 2)
    scores = torch.matmul(grouped, keys.transpose(2, 3)) * scale  # [K, B, G, N]
    scores.masked_fill_(~decodes.valid[None, :, None, :], -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    attended = torch.matmul(weights, values)  # [K, B, G, D]
    out.index_copy_(1, decodes.rows, attended.transpose(1, 2).reshape(out.shape[0], count, cache.head_dim))


def _plan_decodes(spans: Sequence[Span], device: torch.device) -> Decodes:
    widest = max(pages_for(span.position + 1) for span in spans)
    table = []
    for span in spans:
        used = list(span.pages[: pages_for(span.position + 1)])
        table += used + [NULL_PAGE] * (widest - len(used))
    lengths = torch.tensor([span.position + 1 for span in spans], device=device)
    return Decodes(
        rows=torch.tensor([span.row for span in spans], device=device),
        table=torch.tensor(table, device=device),
        valid=torch.arange(widest * PAGE_TOKENS, device=device)[None] < lengths[:, None],
    )


def _plan_chunk(span: Span, device: torch.device) -> Chunk:
    end = span.position + span.length
    pages = torch.tensor(span.pages[: pages_for(end)], device=device)
    queries = torch.arange(span.position, end, device=device)
    return Chunk(
        start=span.row,
        stop=span.row + span.length,
        pages=pages,
        visible=torch.arange(pages.shape[0] * PAGE_TOKENS, device=device)[None] <= queries[:, None],
    )
