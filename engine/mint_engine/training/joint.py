"""Norms of queries and keys over the heads of all ranks, each of which has some: ranks add up sums of squares.

Like `SharedNorm`, with forward and backward written out. Letters in shapes: T rows, Q query and K key/value heads, D
head size.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch

from mint_engine.kernels.attention_structs import HeadNorms, Joint
from mint_engine.kernels.row_structs import Norm
from mint_engine.training.kernels import Heads

Add = Callable[[torch.Tensor], torch.Tensor]  # sums a tensor over all ranks


def norm_jointly(qkv: torch.Tensor, heads: Heads, norms: HeadNorms, joint: Joint, add: Add) -> None:
    """Norm all queries and all keys of each row of qkv [T, (Q + 2 K) D], in place."""
    parts = list(_parts(qkv, heads, norms, joint))
    scales = _scales([part for part, *_ in parts], joint, norms.epsilon, add)
    for (part, norm, _), scale in zip(parts, scales, strict=True):
        normed = part.float() * scale
        if norm.weight is not None:
            normed = normed.to(qkv.dtype)  # rounded before it is weighed
        part.copy_(_weight(norm) * normed)


def norm_jointly_back(
    dqkv: torch.Tensor, raw: torch.Tensor, heads: Heads, norms: HeadNorms, joint: Joint, add: Add
) -> None:
    """The backward of `norm_jointly`, in place; `raw` is its input.

    If several ranks have the same keys, the keys' gradient is a sum of all these ranks' parts, before and after. The
    part through the sum of squares is computed only by the rank that counts the keys.
    """
    given, taken = (list(_parts(each, heads, norms, joint)) for each in (dqkv, raw))
    scales = _scales([part for part, *_ in taken], joint, norms.epsilon, add)
    slopes = [part.float() * _weight(norm) for part, norm, _ in given]
    pulls = add(_sums([slope * x.float() for slope, (x, *_) in zip(slopes, taken, strict=True)]))
    for at, ((part, _, whole), (x, *_)) in enumerate(zip(given, taken, strict=True)):
        scale, found = scales[at], slopes[at]
        if at == 0 or joint.counted:
            found = found - x.float() * (pulls[:, at, None] / whole * scale.square())
        part.copy_(scale * found)


def _parts(
    qkv: torch.Tensor, heads: Heads, norms: HeadNorms, joint: Joint
) -> Iterator[tuple[torch.Tensor, Norm, int]]:
    """Yield queries [T, Q D] and keys [T, K D], each with its norm and the count of its numbers on all ranks."""
    queries, keys = heads.queries * heads.dim, heads.keys * heads.dim
    yield qkv[:, :queries], norms.query, joint.queries
    yield qkv[:, queries : queries + keys], norms.key, joint.keys


def _scales(parts: list[torch.Tensor], joint: Joint, epsilon: float, add: Add) -> tuple[torch.Tensor, ...]:
    """Return the factors of each row's queries and keys, [T, 1] float32."""
    own = _sums([part.float().square() for part in parts])
    own[:, 1] *= float(joint.counted)
    means = add(own) / own.new_tensor([joint.queries, joint.keys])
    return torch.rsqrt(means + epsilon).tensor_split(2, dim=1)


def _sums(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([part.sum(-1) for part in parts], dim=1)


def _weight(norm: Norm) -> torch.Tensor:
    return norm.exact if norm.exact is not None else cast(torch.Tensor, norm.weight)
