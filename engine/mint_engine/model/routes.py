"""Which experts every cached token went to, kept in the pages that its keys and values are in.

So a prefix that is found again has its routes too, and a rollout's are whole whoever computed its prompt. Training
replays them: rollout routing replay, R3 (arXiv 2510.11370). A token takes k bytes a layer (2 k with more than 256
experts), under a hundredth of its keys and values.

Letters in shapes: T tokens, M layers with experts, k experts of a token, E experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.scheduling.pages import PAGE_TOKENS, pages_for

Routes = NDArray[np.uint8] | NDArray[np.int16]  # [T, M, k]


class RouteCache:
    """`pool` [places, M, k]: token places are those of the paged cache."""

    def __init__(self, layers: int, each: int, experts: int, pages: int, device: torch.device) -> None:
        """`layers` is M, `each` k, `experts` E."""
        dtype = torch.uint8 if experts <= 1 << 8 else torch.int16
        self.pool = torch.zeros(((pages + 1) * PAGE_TOKENS, layers, each), dtype=dtype, device=device)

    def write(self, places: torch.Tensor, routes: Sequence[torch.Tensor]) -> None:
        """Note a step's routes, [T, k] of each layer in order, at token places [T]."""
        self.pool.index_copy_(0, places, torch.stack(tuple(routes), dim=1).to(self.pool.dtype))

    def read(self, pages: Sequence[int], tokens: int) -> Routes:
        """Routes of the first `tokens` of a sequence that lies in these pages."""
        chosen = torch.tensor(pages[: pages_for(tokens)], dtype=torch.int64, device=self.pool.device)
        paged = self.pool.view(-1, PAGE_TOKENS, *self.pool.shape[1:]).index_select(0, chosen)
        found: Routes = paged.flatten(0, 1)[:tokens].cpu().numpy()
        return found
