"""Reads a layer's heads, their norms and what they see of the past from transformers' modules for the lean pass."""

from typing import Any

import torch

from mint_engine.kernels.attention_structs import NO_NORMS, AttentionVariant, HeadNorms, Heads, Joint
from mint_engine.kernels.linear_structs import Angles
from mint_engine.model.base import Base
from mint_engine.model.llama_like import ERNIE, GEMMA, Unlike
from mint_engine.model.numerics import norm_of
from mint_engine.parallel.norms import SharedNorm
from mint_engine.parallel.shares import Share

CHUNK_TOKENS = 16  # prompt tokens of one work item of attention
_LAYERED = frozenset({"gemma3_text", "olmo3"})  # families whose rotary angles depend on the kind of layer
_HALVES = frozenset({"gpt_oss"})  # families whose modules return each angle only once


def sizes_of(config: Any, attention: Any, share: Share | None) -> tuple[int, int, int]:
    """Return the number of query heads, of key/value heads, and the size of each. Raises Unlike."""
    dim = int(attention.head_dim)
    heads = (int(config.num_attention_heads), int(config.num_key_value_heads), dim)
    if share is not None:
        heads = (share.heads.size, share.kv_heads.size, dim)
    if dim % 16 or heads[0] % heads[1]:
        raise Unlike(f"heads of {dim}, {heads[0]} over {heads[1]}, fit no kernel")
    return heads


def read_heads(config: Any, attention: Any, sizes: tuple[int, int, int], angles: Angles, window: int) -> Heads:
    """Read a layer's heads; `window` is 0 if it sees all tokens. Raises Unlike."""
    if not _turns(config, attention):
        angles = Angles(angles.cos[:, :0], angles.sin[:, :0])
    cap = attention.attn_logit_softcapping if config.model_type == "gemma2" else None
    sinks = getattr(attention, "sinks", None)
    variant = AttentionVariant(window, sinks.detach().float() if sinks is not None else None, float(cap or 0.0))
    return Heads(*sizes, angles, _norms(config, attention), variant, pairs=config.model_type in ERNIE)


def _turns(config: Any, attention: Any) -> bool:
    """Whether a layer rotates its heads: SmolLM3's without RoPE do not, nor EXAONE's full ones among sliding ones."""
    if config.model_type == "exaone4":
        return attention.sliding_window is None or bool(attention.is_sliding)
    return bool(getattr(attention, "use_rope", True))


def _norms(config: Any, attention: Any) -> HeadNorms:
    if (late := getattr(attention, "query_layernorm", None)) is not None:  # Hunyuan's, applied after the rotation
        query, key = late, attention.key_layernorm
    else:
        query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    if query is None:
        return NO_NORMS
    epsilon = query.eps if config.model_type in GEMMA else query.variance_epsilon
    return HeadNorms(
        norm_of(config, query),
        norm_of(config, key),
        float(epsilon),
        joint=_joint(query, key, int(attention.head_dim)),
        late=late is not None,
    )


def _joint(query: Any, key: Any, size: int) -> Joint | None:
    if isinstance(key, SharedNorm):
        return Joint(query.whole, key.whole, key.counted)
    queries, keys = int(query.weight.shape[0]), int(key.weight.shape[0])
    return Joint(queries, keys) if queries != size else None


def read_angles(config: Any, rotary: Any, base: Base, positions: int) -> list[Angles]:
    """Return each layer's angles, from the rotary module itself, in the base's dtype as its layers get them."""
    layers = int(config.num_hidden_layers)
    kinds = list(config.layer_types) if config.model_type in _LAYERED else [""] * layers
    found = {kind: _angles(config, rotary, base, positions, kind) for kind in sorted(set(kinds))}
    return [found[kind] for kind in kinds]


def _angles(config: Any, rotary: Any, base: Base, positions: int, kind: str) -> Angles:
    like = torch.empty(0, dtype=base.dtype, device=base.device)
    cos, sin = rotary(like, torch.arange(positions, device=base.device)[None], *([kind] if kind else []))
    half = cos.shape[-1]
    if config.model_type not in _HALVES:
        half //= 2  # both halves of a head rotate by the same angles
    return Angles(cos[0, :, :half], sin[0, :, :half])
