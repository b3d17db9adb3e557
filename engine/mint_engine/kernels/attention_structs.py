"""Attention heads and latent attention, as passed to the compiled kernels."""

import ctypes
from dataclasses import dataclass

import torch

from mint_engine.kernels.linear_structs import Angles, Linear, LinearStruct, address, linear_struct
from mint_engine.kernels.row_structs import NO_NORM, Norm, NormStruct, norm_struct

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Joint:
    """How many numbers of queries and of keys a norm over all heads covers, on all ranks.

    `counted` is false if another rank has the same keys and counts them.
    """

    queries: int
    keys: int
    counted: bool = True


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorms [D] of each query and key head, if a family has them; `joint` ones cover all heads, [Q D] and [K D].

    `late` norms apply after the rotation.
    """

    query: Norm
    key: Norm
    epsilon: float
    joint: Joint | None = None
    late: bool = False


NO_NORMS = HeadNorms(NO_NORM, NO_NORM, 0.0)


@dataclass(frozen=True)
class AttentionVariant:
    """How attention differs from plain causal attention.

    A row sees all of its past, or only the last `window` tokens, itself included. `sinks` [Q] are
    extra scores in each head's softmax that attend to nothing. The other scores are soft-capped at `cap`, unless that
    is 0.
    """

    window: int = 0
    sinks: torch.Tensor | None = None
    cap: float = 0.0


PLAIN = AttentionVariant()


@dataclass(frozen=True)
class Heads:
    """A layer's heads: the number of query heads, of key/value heads, and the size D of each.

    `pairs`: rotary positions pair neighbours, not halves.
    """

    queries: int
    keys: int
    size: int
    angles: Angles
    norms: HeadNorms = NO_NORMS
    variant: AttentionVariant = PLAIN
    pairs: bool = False


@dataclass(frozen=True)
class Indexer:
    """Sparse attention's indexer, which scores a row's past: small heads, with queries from `query_norm`'s output.

    `norm` and `bias` [D] are its key's LayerNorm. `pairs`: rotary positions pair neighbours, not halves.
    """

    queries: Linear
    norm: torch.Tensor
    bias: torch.Tensor
    heads: int
    pairs: bool
    epsilon: float


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention; `queries`, if any, map `query_norm`'s output to the heads' queries.

    Each head's part of `kv_b_proj` is two maps: `keys` from its key without the rotated part to the latents' space,
    and `values` from there. A token has `row` numbers in the cache; `module` is that of `kv_b_proj`, if adapters may
    target it. `pairs`: rotary positions pair neighbours, not halves. A row attends to at most `top_k` tokens,
    found by `indexer` or by that of an earlier layer; 0: to all.
    """

    queries: Linear | None
    query_norm: torch.Tensor | None
    norm: torch.Tensor  # [C]
    keys: tuple[Linear, ...]
    values: tuple[Linear, ...]
    rotated: int
    row: int
    angles: Angles
    pairs: bool
    module: int | None
    epsilon: float
    top_k: int
    indexer: Indexer | None

    @property
    def width(self) -> int:
        """Width of a row's queries in the latents' space, or of the indexer's queries if those are wider."""
        width = len(self.keys) * (self.keys[0].out_features + self.rotated)
        return max(width, self.indexer.queries.out_features if self.indexer else 0)


class AttentionVariantStruct(ctypes.Structure):
    """attention_variant.h: AttentionVariant"""

    _fields_ = (("window", _INT), ("sinks", _POINTER), ("cap", _FLOAT))


class HeadsStruct(ctypes.Structure):
    """rows.h: Heads"""

    _fields_ = (
        ("heads", _INT), ("kv_heads", _INT), ("dim", _INT), ("cos", _POINTER), ("sin", _POINTER), ("half", _INT),
        ("pairs", _INT), ("q_norm", NormStruct), ("k_norm", NormStruct), ("joint_queries", _INT),
        ("joint_keys", _INT), ("counted", _INT), ("late", _INT), ("epsilon", _FLOAT),
        ("variant", AttentionVariantStruct),
    )  # fmt: skip


class IndexerStruct(ctypes.Structure):
    """step.h: Indexer"""

    _fields_ = (
        ("queries", LinearStruct), ("norm", _POINTER), ("bias", _POINTER), ("heads", _INT), ("size", _INT),
        ("pairs", _INT), ("epsilon", _FLOAT),
    )  # fmt: skip


class LatentStruct(ctypes.Structure):
    """step.h: Latent"""

    _fields_ = (
        ("queries", LinearStruct), ("query_norm", _POINTER), ("norm", _POINTER),
        ("keys", ctypes.POINTER(LinearStruct)), ("values", ctypes.POINTER(LinearStruct)), ("heads", _INT),
        ("nope", _INT), ("rotated", _INT), ("latent", _INT), ("value", _INT), ("row", _INT), ("cos", _POINTER),
        ("sin", _POINTER), ("pairs", _INT), ("module", _INT), ("epsilon", _FLOAT), ("top_k", _INT),
        ("indexer", ctypes.POINTER(IndexerStruct)),
    )  # fmt: skip


def heads_struct(heads: Heads) -> HeadsStruct:
    """Return the struct of a layer's heads."""
    angles, norms = heads.angles, heads.norms
    joint = norms.joint or Joint(0, 0)
    return HeadsStruct(
        heads.queries, heads.keys, heads.size, address(angles.cos), address(angles.sin), angles.cos.shape[1],
        heads.pairs, norm_struct(norms.query), norm_struct(norms.key), joint.queries, joint.keys, joint.counted,
        norms.late, norms.epsilon, variant_struct(heads.variant),
    )  # fmt: skip


def variant_struct(variant: AttentionVariant) -> AttentionVariantStruct:
    """Return the struct of a layer's attention variant."""
    return AttentionVariantStruct(variant.window, address(variant.sinks), variant.cap)


def latent_struct(latent: Latent) -> LatentStruct:
    """Return the struct of a layer's latent attention."""
    keys, values = ((LinearStruct * len(each))(*map(linear_struct, each)) for each in (latent.keys, latent.values))
    return LatentStruct(
        linear_struct(latent.queries) if latent.queries else LinearStruct(), address(latent.query_norm),
        address(latent.norm), keys, values, len(latent.keys), latent.keys[0].in_features, latent.rotated,
        latent.keys[0].out_features, latent.values[0].out_features, latent.row, address(latent.angles.cos),
        address(latent.angles.sin), latent.pairs, -1 if latent.module is None else latent.module, latent.epsilon,
        latent.top_k, ctypes.pointer(_indexer_struct(latent.indexer)) if latent.indexer else None,
    )  # fmt: skip


def _indexer_struct(of: Indexer) -> IndexerStruct:
    return IndexerStruct(
        linear_struct(of.queries),
        address(of.norm),
        address(of.bias),
        of.heads,
        of.norm.shape[0],
        of.pairs,
        of.epsilon,
    )
