"""Routed experts in the lean training pass: `routed` written out, forward and backward, on own kernels.

Of the forward what is costly to compute again is kept; inputs and activations are not. Letters in shapes: T tokens, k
experts of a token, P = T k pairs, R rows, E experts, H hidden, I an expert's inner size.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from mint_engine.kernels.library import Kernels
from mint_engine.parallel.shares import Cut
from mint_engine.training import replay
from mint_engine.training.batch import Batch
from mint_engine.training.kernels import TrainingKernels
from mint_engine.training.llama import Experts
from mint_engine.training.routed import Owned, Routing, Stack, collect, own_parts, sort_routes, spread

_Middles = list[torch.Tensor]  # x A^T scaling [n, r] of each run's part of a product, in their order


@dataclass(frozen=True)
class Kept:
    """What the backward needs of a forward."""

    experts: Experts
    routing: Routing
    weights: torch.Tensor  # [T, k]: of each token's experts
    gate_up: torch.Tensor  # [R, 2 I]
    down: torch.Tensor  # [R, H]
    middles: tuple[_Middles, _Middles]  # of gate_up and down


@dataclass(frozen=True)
class LeanExperts:
    """Both directions of one base's experts."""

    kernels: Kernels
    training: TrainingKernels

    def forward(
        self, experts: Experts, x: torch.Tensor, batch: Batch
    ) -> Generator[None, None, tuple[torch.Tensor, Kept]]:
        """x [T, H] -> [T, H]; pauses after every large product."""
        weights, routes = _route(experts, x, batch)
        count = experts.gate_up.weight.shape[0]
        routing = sort_routes(routes, batch.owners, Cut(0, count), len(batch.segments))
        gate_up, gate_up_middles = self._product(
            experts.gate_up, _rows_of(x, routing, routes.shape[1]), routing, batch
        )
        yield
        down, down_middles = self._product(experts.down, self.kernels.silu_mul(gate_up), routing, batch)
        yield
        pairs = collect(down, routing).view(*routes.shape, -1)  # [T, k, H]
        mixed = (pairs * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)
        return mixed, Kept(experts, routing, weights, gate_up, down, (gate_up_middles, down_middles))

    def backward(
        self, kept: Kept, x: torch.Tensor, dy: torch.Tensor, batch: Batch
    ) -> Generator[None, None, torch.Tensor]:
        """What `forward` kept and took, and the gradient of what it gave [T, H] -> that of x [T, H]; pauses as it."""
        experts, routing, shape = kept.experts, kept.routing, kept.weights.shape
        pairs = collect(kept.down, routing).view(*shape, -1)
        slopes = (pairs * dy.unsqueeze(1)).sum(dim=2, dtype=torch.float32)  # [T, k]: of the weights
        back = (dy.unsqueeze(1) * kept.weights.unsqueeze(-1)).to(dy.dtype).view(-1, dy.shape[1])
        gate_up_middles, down_middles = kept.middles
        inner = self._product_back(
            experts.down, spread(back, routing), self.kernels.silu_mul(kept.gate_up), down_middles, routing, batch
        )
        yield
        wide = self.training.silu_mul_back(kept.gate_up, inner)
        rows = _rows_of(x, routing, shape[1])
        narrow = self._product_back(experts.gate_up, wide, rows, gate_up_middles, routing, batch)
        yield
        dx = collect(narrow, routing).view(*shape, -1).sum(dim=1)
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            weights, _ = _route(experts, given, batch)
            (through_router,) = torch.autograd.grad(weights, given, slopes.to(weights.dtype))
        return dx.add_(through_router)

    def _product(
        self, stack: Stack, x: torch.Tensor, routing: Routing, batch: Batch
    ) -> tuple[torch.Tensor, _Middles]:
        """x [R, in] -> y [R, out] with every run's adapter, and what its backward needs."""
        y, middles = stack.multiply(x, routing.bounds), []
        for own in own_parts(stack, routing, batch.segments):
            a, b, rows = own.part.a[own.run.expert], own.part.b[own.run.expert], own.run.rows
            middles.append(self.training.adapt(y[rows, own.outputs], x[rows], a, b, own.part.scaling))
        return y, middles

    def _product_back(
        self, stack: Stack, dy: torch.Tensor, x: torch.Tensor, middles: _Middles, routing: Routing, batch: Batch
    ) -> torch.Tensor:
        """dy [R, out] -> dx [R, in]; adds to the gradients of A and B."""
        dx = stack.multiply_back(dy, routing.bounds)
        for own, middle in zip(own_parts(stack, routing, batch.segments), middles, strict=True):
            self._part_back(own, dx[own.run.rows], dy[own.run.rows, own.outputs], x[own.run.rows], middle)
        return dx

    def _part_back(
        self, own: Owned, dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, middle: torch.Tensor
    ) -> None:
        part, expert = own.part, own.run.expert
        back = self.training.adapt(dx, dy, part.b[expert], part.a[expert], part.scaling)
        self.training.outer(back, x, part.a_gradient[expert])
        self.training.outer(middle, dy, part.b_gradient[expert])


def _route(experts: Experts, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's experts' weights and which they are, [T, k], by the router's own code."""
    with replay.replaying(batch, experts.number, experts.gate_up.weight.shape[0]):
        _, weights, routes = experts.router(x)
    return weights, routes


def _rows_of(x: torch.Tensor, routing: Routing, each: int) -> torch.Tensor:
    """x [T, H] as rows [R, H], those that pad zero."""
    return torch.nn.functional.pad(x, (0, 0, 0, 1)).index_select(0, routing.order // each)
