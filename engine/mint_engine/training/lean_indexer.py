"""DeepSeek Sparse Attention's choice in the lean training pass (DeepSeek-V3.2, arXiv 2512.02556, section 2.1).

It chooses like serving's indexer, among each tree's own rows. A choice has no gradient: the attention over the chosen
rows is trained, and the indexer stays as it is, including any adapters on it.

Letters in shapes: T rows, J indexer heads, D their size, E the numbers of it that are rotated.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from mint_engine.kernels.linear_structs import Angles
from mint_engine.training.batch import Batch
from mint_engine.training.kernels import Heads, TopKMask, TrainingKernels, Trees, allocate_mask
from mint_engine.training.products import Product, Rows, multiply


@dataclass(frozen=True)
class Indexer:
    """One layer's indexer."""

    queries: Product  # compressed queries -> [J D]
    first: Product  # the layer's input -> [D + J]: a key, and the heads' weights
    norm: torch.Tensor  # [D], of keys
    bias: torch.Tensor  # [D]
    epsilon: float
    rotated: int
    pairs: bool  # whether neighbours are rotated together, not halves
    top_k: int  # rows that a row attends to at most

    @property
    def size(self) -> int:
        """D"""
        return self.norm.shape[0]


def choose(
    training: TrainingKernels,
    indexer: Indexer,
    x: torch.Tensor,
    compressed: torch.Tensor,
    rows: Rows,
    trees: Trees,
    batch: Batch,
    angles: Angles,
) -> TopKMask | None:
    """x [T, H], compressed queries [T, *] -> which rows each row attends to; None: all that it sees."""
    mask = allocate_mask(batch.trees, indexer.top_k)
    if mask is None:
        return None
    first, _ = multiply(training, indexer.first, x, rows)
    queries, _ = multiply(training, indexer.queries, compressed, rows)
    key = functional.layer_norm(
        first[:, : indexer.size], (indexer.size,), indexer.norm, indexer.bias, indexer.epsilon
    )
    projected = torch.cat((queries, key), dim=1)
    heads = Heads(projected.shape[1] // indexer.size, 0, indexer.size, 0.0)
    rotated = projected.view(len(projected), heads.queries, -1)[..., : indexer.rotated]
    rotated.copy_(as_halves(rotated, pairs=indexer.pairs))
    training.rotate(projected, heads, batch.positions, angles)
    training.select_top_k(projected, first[:, indexer.size :].contiguous(), indexer.size, indexer.top_k, trees, mask)
    return mask


def as_halves(rotated: torch.Tensor, *, pairs: bool) -> torch.Tensor:
    """Reorder [..., E] for the kernels, which rotate numbers half of E apart together; `pairs`: neighbours do."""
    return rotated.reshape(*rotated.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2) if pairs else rotated
