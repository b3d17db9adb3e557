"""DeepSeek Sparse Attention's indexer over the paged cache (DeepSeek-V3.2, arXiv 2512.02556, section 2.1).

A light attention of many small heads scores a row's past, and the best scored tokens are attended to. Its own keys
are in the cache beside the latents. Projections are the base's modules, so adapters on them apply; the arithmetic
follows transformers' (modeling_deepseek_v32.py and modeling_glm_moe_dsa.py, class Indexer), which knows no pages.

Letters in shapes: T tokens, B rows of requests that decode, J indexer heads, D their size, N cached tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_interleave,
)

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.cache import LatentCache
from mint_engine.model.paged import PagedAttention, tiles
from mint_engine.model.selection import Selection, choose, positions_of

if TYPE_CHECKING:
    from mint_engine.gpu.latent import LatentWork

_KEPT = 8  # numbers of four bytes that choosing keeps for each score, at most

# How each family rotates the indexer's queries and keys: halves, or interleaved pairs.
_ROTATIONS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "deepseek_v32": apply_rotary_pos_emb,
    "glm_moe_dsa": apply_rotary_pos_emb_interleave,
}


def rotation_of(model_type: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return the function with which a family's indexer rotates. Raises UnsupportedBase for an unknown family."""
    if model_type not in _ROTATIONS:
        raise UnsupportedBase(f"model type {model_type}", "has an indexer that is not supported")
    return _ROTATIONS[model_type]


def turns_pairs(model_type: str) -> bool:
    """Whether a family's indexer rotates interleaved neighbours, not halves. Raises as `rotation_of` does."""
    return rotation_of(model_type) is apply_rotary_pos_emb_interleave


@torch.no_grad()
def select(
    indexer: Any,
    hidden: torch.Tensor,
    compressed: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    paged: PagedAttention,
) -> Selection:
    """Score every row's past and choose. hidden [1, T, H], compressed queries [1, T, *], angles as the model's own.

    Writes the step's own keys to the cache. If no row has more past than may be chosen, nothing is scored.
    """
    cache = paged.cache
    assert isinstance(cache, LatentCache)  # noqa: S101 - such a base's cache has this shape
    layer, column = int(indexer.layer_idx), cache.width - int(indexer.head_dim)
    query, key = project(indexer, hidden, compressed, angles)
    cache.write(layer, paged.places, key, column)
    most = int(indexer.index_topk)
    weights = weigh_heads(indexer, hidden)
    if paged.latents is not None:
        return Selection(positions=_positions(query, weights, paged.latents, cache.of(layer), column, most))
    decodes: list[torch.Tensor | None] = []
    for group in paged.decodes:
        if group.longest <= most:
            decodes.append(None)
            continue
        rows, count = group.rows, group.rows.shape[0]
        past = cache.read(layer, group.table)[:, column:].view(count, -1, key.shape[1])  # [B, N, D]
        decodes.append(choose(score(query[rows], past, weights[rows]), group.visible(), most))
    chunks: list[torch.Tensor | None] = []
    for chunk in paged.chunks:
        if chunk.end <= most:
            chunks.append(None)
            continue
        part = slice(chunk.start, chunk.stop)
        past = cache.read(layer, chunk.pages)[:, column:]  # [N, D]
        chunks.append(choose_of(query[part], past, weights[part], chunk.visible(), most))
    return Selection(tuple(decodes), tuple(chunks))


def _positions(
    query: torch.Tensor, weights: torch.Tensor, work: "LatentWork", pages: torch.Tensor, column: int, most: int
) -> torch.Tensor | None:
    """Choose for the rows of `work`, see Selection; None if all of them attend to all that they see."""
    if not work.runs:
        return None
    if work.rows is not None:
        query, weights = query.index_select(0, work.rows), weights.index_select(0, work.rows)
    found = []
    for start, stop, longest in work.runs:
        if not longest:
            found.append(torch.arange(most, dtype=torch.int32, device=query.device).expand(stop - start, -1))
            continue
        for tile in tiles(stop - start, longest * _KEPT):
            rows = slice(start + tile.start, start + tile.stop)
            scores = work.score(query[rows], weights[rows], pages, column, rows, longest)
            found.append(positions_of(choose(scores, scores != -torch.inf, most), most))
    return torch.cat(found)


def choose_of(
    query: torch.Tensor, past: torch.Tensor, weights: torch.Tensor, visible: torch.Tensor, most: int
) -> torch.Tensor:
    """Choose what rows attend to of one past, [T, N] bool; takes some rows at a time, to bound memory.

    Queries [T, J, D], past [N, D], weights [T, J].
    """
    runs = tiles(query.shape[0], query.shape[1] * past.shape[0])
    return torch.cat([choose(score(query[run], past, weights[run]), visible[run], most) for run in runs])


def project(
    indexer: Any, hidden: torch.Tensor, compressed: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rotated queries [T, J, D] and keys [T, D]."""
    turned = int(indexer.qk_rope_head_dim)
    query = indexer.wq_b(compressed).view(1, hidden.shape[1], indexer.n_heads, indexer.head_dim)
    key = indexer.k_norm(indexer.wk(hidden)).unsqueeze(2)
    rotate = rotation_of(indexer.config.model_type)
    front, first = rotate(query[..., :turned], key[..., :turned], *angles, unsqueeze_dim=2)
    query = torch.cat((front, query[..., turned:]), dim=-1)
    return query[0], torch.cat((first, key[..., turned:]), dim=-1)[0, :, 0]


def weigh_heads(indexer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the weights of each head's scores, by row [T, J]. hidden [1, T, H]."""
    weights = indexer.weights_proj(hidden.to(indexer.weights_proj.weight.dtype)).float()[0]
    scaled: torch.Tensor = weights * indexer.n_heads**-0.5 * indexer.softmax_scale
    return scaled


def score(query: torch.Tensor, past: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Score queries [n, J, D], with keys [N, D] or [n, N, D] and weights [n, J] -> [n, N] float32."""
    scores = functional.relu(torch.matmul(query.float(), past.float().transpose(-1, -2)))
    return torch.matmul(weights.unsqueeze(1), scores).squeeze(1)
