"""The nouns that loading and computing share: a base's LoRA-able modules, and one adapter's weights."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Module:
    """A linear module of the base that an adapter may target. `path` is transformers' own, e.g.
    "model.layers.0.self_attn.q_proj"; its weight is [out_features, in_features]."""

    path: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Delta:
    """One module's part of an adapter: y += (x @ a.T) @ b.T * scaling.

    a: [r, in], b: [out, r]; `scaling` is alpha/r (alpha/sqrt(r) with rsLoRA), applied exactly once, here.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class AdapterWeights:
    """One revision of an adapter, checked and ready for a slot. `revision` is the digest of its files' content."""

    adapter: str
    revision: str
    rank: int  # the largest over its modules
    deltas: dict[str, Delta]  # by module path

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, as held in host memory."""
        return sum(delta.a.nbytes + delta.b.nbytes for delta in self.deltas.values())
