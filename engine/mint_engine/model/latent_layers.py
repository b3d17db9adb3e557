"""Reads multi-head latent attention, sparse or not, from transformers' modules for the lean pass, or refuses it.

Letters in shapes: Q heads, C latent size, K size of a head's key without its rotated part, V of its value.
"""

from typing import Any

import torch

from mint_engine.kernels.attention_structs import Indexer, Latent
from mint_engine.kernels.library import Kernels
from mint_engine.kernels.linear_structs import NO_TARGETS, Angles, Linear
from mint_engine.model.indexer import turns_pairs
from mint_engine.model.llama_like import Unlike, attends_to_some, check_indexer, interleaves, latent_norms
from mint_engine.residency.large_pages import LargePages


def check_latent(attention: Any, config: Any) -> None:
    """Raise Unlike for sizes that the kernels do not support."""
    latent, rotated = int(attention.kv_lora_rank), int(attention.qk_rope_head_dim)
    sizes = latent, rotated, int(attention.qk_nope_head_dim), int(attention.v_head_dim), attention.q_lora_rank or 0
    if (latent + rotated) % 4 or any(size % 2 for size in sizes) or _index_size(config) % 4:
        raise Unlike(f"latents of {latent}, and heads of {sizes[2]} and {rotated}, fit no kernel")


def read_latent(
    attention: Any,
    queries: Linear | None,
    indexed: Linear | None,
    module: int | None,
    angles: Angles,
    kernels: Kernels,
    memory: LargePages,
) -> Latent:
    """Read an attention that has been checked; `queries` is its packed `q_b_proj`, `indexed` its indexer's `wq_b`.

    `module` is the slots' module of its `kv_b_proj`.
    """
    keys, values = _halves(attention, kernels, memory)
    config, (norm, query_norm) = attention.config, latent_norms(attention)
    sparse = attends_to_some(config, len(angles.cos))
    return Latent(
        queries=queries,
        query_norm=query_norm.weight if query_norm is not None else None,
        norm=norm.weight,
        keys=keys,
        values=values,
        rotated=int(attention.qk_rope_head_dim),
        row=int(attention.kv_lora_rank) + int(attention.qk_rope_head_dim) + _index_size(config),
        angles=angles,
        pairs=interleaves(config),
        module=module,
        epsilon=float(norm.variance_epsilon),
        top_k=int(config.index_topk) if sparse else 0,
        indexer=_indexer(attention.indexer, indexed) if indexed is not None else None,
    )


def _index_size(config: Any) -> int:
    """Size of an indexer's key; 0 if attention is not sparse."""
    return int(config.index_head_dim) if getattr(config, "index_topk", None) else 0


def _indexer(indexer: Any, queries: Linear) -> Indexer:
    check_indexer(indexer)
    norm = indexer.k_norm
    return Indexer(
        queries=queries,
        norm=norm.weight,
        bias=norm.bias,
        heads=int(indexer.n_heads),
        pairs=turns_pairs(indexer.config.model_type),
        epsilon=float(norm.eps),
    )


def _halves(attention: Any, kernels: Kernels, memory: LargePages) -> tuple[tuple[Linear, ...], tuple[Linear, ...]]:
    """Pack each head's part of `kv_b_proj` [K + V, C]: its keys' transposed, [C, K], and its values' [V, C]."""
    linear, plain = attention.kv_b_proj, int(attention.qk_nope_head_dim)
    if linear.bias is not None:
        raise Unlike("its kv_b_proj has a bias")
    weight = linear.weight.view(attention.num_heads, -1, linear.weight.shape[1])

    def packed(part: torch.Tensor) -> Linear:
        return kernels.pack(part, None, NO_TARGETS, memory)

    return tuple(packed(head[:plain].t()) for head in weight), tuple(packed(head[plain:]) for head in weight)
