"""DeepSeek Sparse Attention's choice of rows in training: like serving's indexer, among each tree's own rows.

A choice has no gradient: the attention over the chosen rows is trained, and the indexer stays as it is.
"""

from typing import Any

import torch

from mint_engine.model.indexer import choose_of, project, weigh_heads
from mint_engine.training.attend import Chosen, cuts, visible
from mint_engine.training.delta import Current


@torch.no_grad()
def select(
    indexer: Any,
    current: Current,
    hidden: torch.Tensor,
    compressed: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    *_: object,
    **__: object,
) -> Chosen:
    """Score every row's past and choose: hidden [1, T, H], compressed queries [1, T, *], the model's own angles."""
    query, key = project(indexer, hidden, compressed, angles)
    weights, most = weigh_heads(indexer, hidden), int(indexer.index_topk)
    chosen: list[torch.Tensor | None] = []
    for tree in current.batch.trees if current.batch is not None else ():
        if tree.trunk + max(tree.branches, default=0) <= most:
            chosen.append(None)
            continue
        found = torch.zeros(tree.rows, tree.rows, dtype=torch.bool, device=hidden.device)
        for rows in cuts(tree.rows):
            own, past = (slice(tree.row + first, tree.row + rows.stop) for first in (rows.start, 0))
            seen = visible(tree.trunk, tree.branches, rows=rows, device=hidden.device)
            found[rows.start : rows.stop, : rows.stop] = choose_of(query[own], key[past], weights[own], seen, most)
        chosen.append(found)
    return tuple(chosen)
