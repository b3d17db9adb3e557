"""What the lean pass keeps for routed experts: buffers for a step's pairs, and its tokens' routes.

Letters in shapes: T tokens of a step, k experts of a token, P = T k pairs, M layers with experts, H hidden, I an
expert's inner size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_engine.kernels.expert_structs import Experts
from mint_engine.model.cache import Cache


@dataclass(frozen=True)
class Pairs:
    """What one step writes for its pairs."""

    routes: torch.Tensor | None  # [M, T, k] int32
    weights: torch.Tensor | None  # [T, k] float32, of the layer in progress
    buffers: tuple[torch.Tensor, ...]  # [P, H], [P, 2 I], [P, I]


NO_PAIRS = Pairs(None, None, ())


class ExpertBuffers:
    """The buffers of one base, whose layers all have experts of the same number and size."""

    def __init__(self, layers: Sequence[Experts], cache: Cache) -> None:
        first = layers[0]
        _, both, hidden = first.gate_up.shape
        self._layers, self._top_k, self._widths = len(layers), first.top_k, (hidden, both, both // 2)
        self._dtype = cache.pool.dtype
        self._cache = cache.routes
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._routes = torch.empty(0)

    def pairs_for(self, rows: int) -> Pairs:
        """Return the buffers for a step of `rows` rows; they are kept between steps, like those of the pass."""
        pairs = rows * self._top_k
        if not self._buffers or self._buffers[0].shape[0] < pairs:
            self._buffers = tuple(torch.empty((pairs, width), dtype=self._dtype) for width in self._widths)
        self._routes = torch.empty((self._layers, rows, self._top_k), dtype=torch.int32)
        return Pairs(self._routes, torch.empty((rows, self._top_k)), self._buffers)

    def keep_routes(self, places: torch.Tensor) -> None:
        """Store the routes of the step's tokens at their token places [T], if routes are kept."""
        if self._cache is not None:
            self._cache.write(places, self._routes.unbind())
