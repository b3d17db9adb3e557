"""Attention over a packed batch and the paged cache, registered with transformers under the name "mint".

The models' own code computes queries, keys and values for all tokens of a step in one row [1, T]; here each request
attends to its own past. Rows of decoding requests are computed together if their pasts are of similar length, padded
to the longest. A prompt's chunk is computed alone; a long one in as many rows at a time as there is room for their
scores. Letters in shapes: T tokens, B decoding requests, Q query heads, K key/value heads, G = Q / K, D head size,
N cached tokens, padding included.

Bases may also ask for a sliding window (Gemma, gpt-oss, Mistral), a cap on scores (Gemma 2), and a sink: one more
logit per head that takes weight and contributes nothing (gpt-oss). `mint_engine.model.latent` has attention over
compressed keys and values.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mint_contracts.errors import UnsupportedBase
from mint_engine.model import upcast
from mint_engine.model.attention_style import Style
from mint_engine.model.cache import KvCache
from mint_engine.model.latent import attend_latent
from mint_engine.model.paged import Chunk, Decodes, Paged, PagedAttention, tiles

NAME = "mint"

# Options that models pass but that change nothing here; those that would change the result are computed or refused.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "is_causal", "cache", "output_attentions", "output_router_logits", "layer_idx"}
)

# Families in which only a mask says that all layers slide; no mask is built here.
_MASKED = frozenset({"phimoe"})


def register() -> None:
    """Register "mint" with transformers. No mask function is registered with it, so none is ever built."""
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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    indices: object = None,
    paged: Paged | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Queries [1, Q, T, D], keys and values [1, K, T, D] -> [1, T, Q, D]; writes keys and values to the cache.

    Raises UnsupportedBase if the model asks for something that is not computed here.
    """
    refuse_unserved(module, options, attention_mask if indices is None else None, dropout)
    if paged is None:
        raise UnsupportedBase(type(module).__name__, "needs attention with no page table, which is not supported")
    style = style_of(module, query.shape[-1], scaling, sliding_window, softcap, s_aux)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if not isinstance(paged.cache, KvCache):
        if style.window is not None or style.cap is not None or style.sinks is not None:
            raise UnsupportedBase(
                type(module).__name__, "has a window, cap or sink over latents, which is not supported"
            )
        return attend_latent(module, query[0], key[0, 0], value[0, 0], indices, style.scale, paged.of(layer)), None
    kept, cache, plan = paged.window(layer), paged.cache, paged.of(layer)
    if kept is not None and (style.window is None or style.window > kept):
        raise UnsupportedBase(type(module).__name__, f"sees further back than the {kept} tokens of its configuration")
    if key.shape[1] != cache.heads or key.shape[3] != cache.head_dim or value.shape != key.shape:
        raise UnsupportedBase(
            type(module).__name__,
            f"has keys {list(key.shape)} and values {list(value.shape)}, and its configuration gives "
            f"{cache.heads} heads of {cache.head_dim} for both",
        )
    cache.write(layer, plan.places, key[0], value[0])
    return attend_planned(query[0], layer, plan, style).transpose(0, 1).unsqueeze(0), None


def attend_planned(query: torch.Tensor, layer: int, plan: PagedAttention, style: Style) -> torch.Tensor:
    """Attention of query [Q, T, D] over a layer's pages in the cache, as planned -> [Q, T, D]."""
    cache, out = cast(KvCache, plan.cache), torch.empty_like(query)
    if plan.work is not None:
        plan.work.attend(query, out, cache.of(layer), style)
    for decodes in plan.decodes:
        _decode(out, query, layer, decodes, cache, style)
    for chunk in plan.chunks:
        _attend_chunk(out, query, layer, chunk, cache, style)
    return out


def style_of(
    module: nn.Module, size: int, scale: float | None, window: int | None, cap: float | None,
    sinks: torch.Tensor | None,
) -> Style:  # fmt: skip
    """Return a layer's style, given the size of its heads and what its model passes; its family may add a window."""
    config = getattr(module, "config", None)
    if window is None and getattr(config, "model_type", "") in _MASKED:
        window = config.sliding_window or None  # type: ignore[union-attr]
    return Style(size**-0.5 if scale is None else scale, window, cap, sinks)


def refuse_unserved(
    module: nn.Module, options: Mapping[str, object], mask: torch.Tensor | None, dropout: float, where: str = ""
) -> None:
    """Raise UnsupportedBase if a model asks for what would change attention's result and is not computed `where`."""
    found = sorted(name for name, given in options.items() if given is not None and name not in _HARMLESS)
    if options.get("is_causal") is False or not getattr(module, "is_causal", True) or mask is not None or dropout:
        found.append("a custom mask or dropout")
    if found:
        reason = f"needs attention with {', '.join(found)}, which is not supported{where}"
        raise UnsupportedBase(type(module).__name__, reason)


def _decode(
    out: torch.Tensor, query: torch.Tensor, layer: int, decodes: Decodes, cache: KvCache, style: Style
) -> None:
    """Attend with one row of each of B requests, into their rows of out; out and query are [Q, T, D]."""
    count = decodes.rows.shape[0]
    keys, values = (
        each.view(cache.heads, count, -1, cache.head_dim) for each in cache.read(layer, decodes.table)
    )  # [K, B, N, D]
    grouped = query.index_select(1, decodes.rows).view(cache.heads, -1, count, cache.head_dim).transpose(1, 2)
    scores = torch.matmul(grouped, keys.transpose(2, 3)) * style.scale  # [K, B, G, N]
    sinks = style.sinks.view(cache.heads, 1, -1, 1) if style.sinks is not None else None
    weights = _weigh(scores, decodes.visible(style.window)[None, :, None], style.cap, sinks).to(values.dtype)
    attended = torch.matmul(weights, values)  # [K, B, G, D]
    out.index_copy_(1, decodes.rows, attended.transpose(1, 2).reshape(out.shape[0], count, cache.head_dim))


def _attend_chunk(
    out: torch.Tensor, query: torch.Tensor, layer: int, chunk: Chunk, cache: KvCache, style: Style
) -> None:
    keys, values = cache.read(layer, chunk.pages)  # [K, N, D]
    rows, visible = query[:, chunk.start : chunk.stop], chunk.visible(style.window)
    into = out[:, chunk.start : chunk.stop]
    for tile in tiles(rows.shape[1], rows.shape[0] * keys.shape[1]):
        into[:, tile] = attend_rows(rows[:, tile], keys, values, visible[tile], style)


def attend_rows(
    rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, style: Style
) -> torch.Tensor:
    """Rows [Q, T, D] over keys [K, N, D] and values [K, N, E], restricted to `visible` [T, N] -> [Q, T, E]."""
    heads = keys.shape[0]
    if style.cap is None and style.sinks is None:  # squeeze, since the backward of an index copies the gradient
        return upcast.attend(
            rows[None], keys[None], values[None], attn_mask=visible, scale=style.scale,
            enable_gqa=rows.shape[0] != heads,
        ).squeeze(0)  # fmt: skip
    grouped = rows.reshape(heads, -1, *rows.shape[1:])  # [K, G, T, D]
    scores = torch.matmul(grouped, keys.transpose(1, 2)[:, None]) * style.scale  # [K, G, T, N]
    sinks = style.sinks.view(heads, -1, 1, 1) if style.sinks is not None else None
    weights = _weigh(scores, visible, style.cap, sinks).to(values.dtype)
    return torch.matmul(weights, values[:, None]).view(*rows.shape[:2], values.shape[2])


def _weigh(
    scores: torch.Tensor, visible: torch.Tensor, cap: float | None, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Softmax of the visible scores over the last dimension, in float32, with a sink in it if there is one."""
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    beside = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, beside), dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
