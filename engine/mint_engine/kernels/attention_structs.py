"""Heads of attention, or latent attention, as the compiled kernels are given them."""

import ctypes
from dataclasses import dataclass

import torch

from mint_engine.kernels.linear_structs import Angles, Linear, LinearStruct, address, linear_struct
from mint_engine.kernels.row_structs import NO_NORM, Norm, NormStruct, norm_struct

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Joint:
    """How many numbers norms over all heads are of, of all ranks: queries and keys.

    Not `counted` are keys that another rank has too, and counts.
    """

    queries: int
    keys: int
    counted: bool = True


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorms [D] of each query and key head, where a family has them; or `joint` ones of all, [Q D] and [K D].

    `late` ones are of heads that have turned.
    """

    query: Norm
    key: Norm
    epsilon: float
    joint: Joint | None = None
    late: bool = False


NO_NORMS = HeadNorms(NO_NORM, NO_NORM, 0.0)


@dataclass(frozen=True)
class Sight:
    """How rows see their past: all of it or their `window`'s tokens, themselves included.

    `sinks` [Q] are scores of nothing beside a head's own, which are held within `cap`, unless that is 0.
    """

    window: int = 0
    sinks: torch.Tensor | None = None
    cap: float = 0.0


PLAIN = Sight()


@dataclass(frozen=True)
class Heads:
    """A layer's heads: of queries, of keys and values, and the size D of each.

    Where `pairs`, neighbours turn together, and not halves.
    """

    queries: int
    keys: int
    size: int
    angles: Angles
    norms: HeadNorms = NO_NORMS
    sight: Sight = PLAIN
    pairs: bool = False


@dataclass(frozen=True)
class Indexer:
    """What scores a row's past in sparse attention: small heads' queries of what the layer's `query_norm` gives.

    `norm` and `bias` [D] are its key's LayerNorm. Where `pairs`, neighbours turn together, and not halves.
    """

    queries: Linear
    norm: torch.Tensor
    bias: torch.Tensor
    heads: int
    pairs: bool
    epsilon: float


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: queries from `queries`, where there are such, of what `query_norm` gives.

    Each head's part of `kv_b_proj` is two maps: `keys` from its key without the rotated part to the latents' space,
    and `values` from there. A token has `row` numbers in the cache; `module` is that of `kv_b_proj`, if adapters may
    target it. Where `pairs`, neighbours turn together, and not halves. A row attends to all, where `most` is 0, or to
    so many tokens at most, which `indexer` finds, or that of a layer before.
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
    most: int
    indexer: Indexer | None

    @property
    def width(self) -> int:
        """Numbers of a query in the latents' space, of all heads, or of the indexer's heads."""
        width = len(self.keys) * (self.keys[0].out_features + self.rotated)
        return max(width, self.indexer.queries.out_features if self.indexer else 0)


class SightStruct(ctypes.Structure):
    """sight.h: Sight"""

    _fields_ = (("window", _INT), ("sinks", _POINTER), ("cap", _FLOAT))


class HeadsStruct(ctypes.Structure):
    """rows.h: Heads"""

    _fields_ = (
        ("heads", _INT), ("kv_heads", _INT), ("dim", _INT), ("cos", _POINTER), ("sin", _POINTER), ("half", _INT),
        ("pairs", _INT), ("q_norm", NormStruct), ("k_norm", NormStruct), ("joint_queries", _INT),
        ("joint_keys", _INT), ("counted", _INT), ("late", _INT), ("epsilon", _FLOAT), ("sight", SightStruct),
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
        ("plain", _INT), ("rotated", _INT), ("latent", _INT), ("value", _INT), ("row", _INT), ("cos", _POINTER),
        ("sin", _POINTER), ("pairs", _INT), ("module", _INT), ("epsilon", _FLOAT), ("most", _INT),
        ("indexer", ctypes.POINTER(IndexerStruct)),
    )  # fmt: skip


def heads_struct(heads: Heads) -> HeadsStruct:
    """A layer's heads."""
    angles, norms = heads.angles, heads.norms
    joint = norms.joint or Joint(0, 0)
    return HeadsStruct(
        heads.queries, heads.keys, heads.size, address(angles.cos), address(angles.sin), angles.cos.shape[1],
        heads.pairs, norm_struct(norms.query), norm_struct(norms.key), joint.queries, joint.keys, joint.counted,
        norms.late, norms.epsilon, sight_struct(heads.sight),
    )  # fmt: skip


def sight_struct(sight: Sight) -> SightStruct:
    """How they see their past."""
    return SightStruct(sight.window, address(sight.sinks), sight.cap)


def latent_struct(latent: Latent) -> LatentStruct:
    """A layer's latent attention."""
    keys, values = ((LinearStruct * len(each))(*map(linear_struct, each)) for each in (latent.keys, latent.values))
    return LatentStruct(
        linear_struct(latent.queries) if latent.queries else LinearStruct(), address(latent.query_norm),
        address(latent.norm), keys, values, len(latent.keys), latent.keys[0].in_features, latent.rotated,
        latent.keys[0].out_features, latent.values[0].out_features, latent.row, address(latent.angles.cos),
        address(latent.angles.sin), latent.pairs, -1 if latent.module is None else latent.module, latent.epsilon,
        latent.most, ctypes.pointer(_indexer_struct(latent.indexer)) if latent.indexer else None,
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
