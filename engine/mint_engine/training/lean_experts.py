"""Routed experts in the lean training pass: `routed` written out, forward and backward, on own kernels.

Of the forward what is costly to compute again is kept; inputs and activations are not. Of several ranks each computes
the pairs of a token and an expert that it holds, and what comes of these: its part of a sum both ways, also of what
goes back through the router, which all ranks compute alike.

Letters in shapes: T tokens, k experts of a token, P rows, one a pair of both whose expert is held, in the order of
experts, H hidden, I an expert's inner size.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from mint_engine.kernels.library import Kernels
from mint_engine.kernels.row_structs import Activation
from mint_engine.training import replay
from mint_engine.training.batch import Batch
from mint_engine.training.kernels import TrainingKernels
from mint_engine.training.llama import Experts
from mint_engine.training.products import Kept, add_gradients, multiply, rows_back, sorted_rows
from mint_engine.training.routed import sort_routes


@dataclass(frozen=True)
class KeptExperts:
    """What the backward needs of a forward."""

    experts: Experts
    tokens: torch.Tensor  # [P] int64: each row's token
    back: torch.Tensor  # [T, k] int64: each pair's row, P where its expert is another rank's
    weights: torch.Tensor  # [T, k] float32: of each token's experts
    gate_up: torch.Tensor  # [P, 2 I]
    down: torch.Tensor  # [P, H]
    products: tuple[Kept, Kept]  # gate_up, down


@dataclass(frozen=True)
class LeanExperts:
    """Both directions of one base's experts."""

    kernels: Kernels
    training: TrainingKernels
    activation: Activation

    def forward(
        self, experts: Experts, x: torch.Tensor, batch: Batch
    ) -> Generator[None, None, tuple[torch.Tensor, KeptExperts]]:
        """x [T, H] -> [T, H]; pauses after every large product."""
        weights, routes = _route(experts, x, batch)
        weights = weights.float()
        routing = sort_routes(routes, batch.owners, experts.held, len(batch.segments), multiple=1)
        tokens, back, rows = (
            routing.order // routes.shape[1],
            routing.back.view(routes.shape),
            sorted_rows(routing, batch),
        )
        gate_up, first = multiply(self.training, experts.gate_up, x.index_select(0, tokens), rows)
        yield
        down, second = multiply(self.training, experts.down, self.kernels.gate_mul(gate_up, self.activation), rows)
        yield
        mixed = self.training.mix(down, back, weights)
        return mixed, KeptExperts(experts, tokens, back, weights, gate_up, down, (first, second))

    def backward(
        self, kept: KeptExperts, x: torch.Tensor, dy: torch.Tensor, batch: Batch
    ) -> Generator[None, None, torch.Tensor]:
        """What `forward` kept and took, and the gradient of what it gave [T, H] -> that of x [T, H]; pauses as it."""
        first, second = kept.products
        given, slopes = self.training.mix_back(kept.down, kept.back, kept.weights, dy)
        inner, backs = rows_back(self.training, second, given)
        yield
        wide, gated = self.training.gate_mul_back(kept.gate_up, inner, self.activation)
        add_gradients(self.training, second, given, backs, gated)
        yield
        narrow, backs = rows_back(self.training, first, wide)
        yield
        add_gradients(self.training, first, wide, backs, x.index_select(0, kept.tokens))
        dx = self.training.mix(narrow, kept.back, torch.ones_like(kept.weights))
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            weights, _ = _route(kept.experts, leaf, batch)
            (through_router,) = torch.autograd.grad(weights, leaf, slopes.to(weights.dtype))
        return dx.add_(through_router)


def _route(experts: Experts, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's experts' weights and which they are, [T, k], by the router's own code."""
    with replay.replaying(batch, experts.number, experts.count, experts.kind):
        _, weights, routes = experts.router(x)
    return weights, routes
