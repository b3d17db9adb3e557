"""The experts that each cached token was routed to, kept in the pages of its keys and values.

So a prefix found in the cache has its routes too, and a rollout's routes are complete whoever computed its prompt.
Training replays them: rollout routing replay, R3 (arXiv 2510.11370). A token takes k bytes per layer (2 k with more
than 256 experts): in bfloat16 0.4% of Qwen3-30B-A3B's keys and values, 1.4% of Kimi-K2's latents. So only an engine
that trains keeps them, and only its first rank.

Letters in shapes: T tokens, M layers with experts, k experts of a token, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mint_contracts.layer_groups import PAGE_TOKENS, pages_for

Routes = NDArray[np.uint8] | NDArray[np.int16]  # [T, M, k]


@dataclass(frozen=True)
class RouteShape:
    """What a base's routers choose: `layers` is M, `each` k, `experts` E."""

    layers: int
    each: int
    experts: int

    @property
    def dtype(self) -> torch.dtype:
        """An integer type that holds an expert's number."""
        return torch.uint8 if self.experts <= 1 << 8 else torch.int16

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's routes, over all layers."""
        return self.layers * self.each * self.dtype.itemsize


class RouteCache:
    """Routes of cached tokens: `pool` [places, M, k], whose places are those of the paged cache."""

    def __init__(self, shape: RouteShape, pages: int, device: torch.device) -> None:
        places = (pages + 1) * PAGE_TOKENS
        self.pool = torch.zeros((places, shape.layers, shape.each), dtype=shape.dtype, device=device)

    def write(self, places: torch.Tensor, routes: Sequence[torch.Tensor]) -> None:
        """Store a step's routes, [T, k] of each layer in order, at token places [T]."""
        self.pool.index_copy_(0, places, torch.stack(tuple(routes), dim=1).to(self.pool.dtype))

    def read(self, pages: Sequence[int], tokens: int) -> Routes:
        """Return the routes of the first `tokens` tokens of a sequence with these pages."""
        chosen = torch.tensor(pages[: pages_for(tokens)], dtype=torch.int64, device=self.pool.device)
        paged = self.pool.view(-1, PAGE_TOKENS, *self.pool.shape[1:]).index_select(0, chosen)
        found: Routes = paged.flatten(0, 1)[:tokens].cpu().numpy()
        return found
