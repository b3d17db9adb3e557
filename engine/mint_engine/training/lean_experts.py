"""Routed experts in the lean training pass: forward and backward of `routed` written out on own kernels.

The forward keeps what is costly to compute again, but no inputs or activations. With several ranks, each computes the
pairs of a token and an expert that it holds; its results are parts of a sum in both directions, also of the gradient
through the router, which all ranks compute alike.

Letters in shapes: T tokens, k experts per token, P rows, one for each pair of token and held expert, ordered by
expert, H hidden, I an expert's inner size.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from mint_engine.kernels.library import Kernels
from mint_engine.kernels.row_structs import Activation
from mint_engine.model.expert_product import add_bias
from mint_engine.training import replay
from mint_engine.training.batch import Batch
from mint_engine.training.kernels import TrainingKernels
from mint_engine.training.llama import Experts
from mint_engine.training.products import Rows, Saved, add_gradients, multiply, rows_back, sorted_rows
from mint_engine.training.routed import sort_routes


@dataclass(frozen=True)
class SavedExperts:
    """What the backward needs from a forward."""

    experts: Experts
    tokens: torch.Tensor  # [P] int64: each row's token
    back: torch.Tensor  # [T, k] int64: each pair's row, P if another rank holds its expert
    weights: torch.Tensor  # [T, k] float32: weights of each token's experts
    gate_up: torch.Tensor  # [P, 2 I]
    down: torch.Tensor  # [P, H]
    first: tuple[Saved, ...]  # gate_up
    second: Saved  # down


@dataclass(frozen=True)
class LeanExperts:
    """Forward and backward of one base's experts."""

    kernels: Kernels
    training: TrainingKernels
    activation: Activation

    def forward(
        self, experts: Experts, x: torch.Tensor, batch: Batch
    ) -> Generator[None, None, tuple[torch.Tensor, SavedExperts]]:
        """x [T, H] -> [T, H]; yields after every large product."""
        weights, routes = _route(experts, x, batch)
        weights = weights.float()
        routing = sort_routes(routes, batch.owners, experts.held, len(batch.segments), multiple=1)
        tokens, back, rows = (
            routing.order // routes.shape[1],
            routing.back.view(routes.shape),
            sorted_rows(routing, batch),
        )
        gate_up, first = yield from self._gate_up(experts, x.index_select(0, tokens), rows, routing.bounds)
        down, second = multiply(self.training, experts.down, self.kernels.gate_mul(gate_up, self.activation), rows)
        if experts.down_bias is not None:
            add_bias(down, experts.down_bias, routing.bounds)
        yield
        mixed = self.training.combine(down, back, weights)
        return mixed, SavedExperts(experts, tokens, back, weights, gate_up, down, first, second)

    def _gate_up(
        self, experts: Experts, x: torch.Tensor, rows: Rows, bounds: tuple[int, ...]
    ) -> Generator[None, None, tuple[torch.Tensor, tuple[Saved, ...]]]:
        """x [P, H] -> [P, 2 I]; like the sampler, adds a bias to the rounded products."""
        found, saved = [], []
        for product in experts.gate_up:
            y, own = multiply(self.training, product, x, rows)
            found.append(y)
            saved.append(own)
            yield
        gate_up = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        if experts.gate_up_bias is not None:
            add_bias(gate_up, experts.gate_up_bias, bounds)
        return gate_up, tuple(saved)

    def backward(
        self, saved: SavedExperts, x: torch.Tensor, dy: torch.Tensor, batch: Batch
    ) -> Generator[None, None, torch.Tensor]:
        """`saved` and input of `forward`, and its output's gradient [T, H] -> that of x [T, H]; yields like it."""
        given, slopes = self.training.combine_back(saved.down, saved.back, saved.weights, dy)
        inner, backs = rows_back(self.training, saved.second, given)
        yield
        wide, gated = self.training.gate_mul_back(saved.gate_up, inner, self.activation)
        add_gradients(self.training, saved.second, given, backs, gated)
        yield
        narrow = yield from self._gate_up_back(saved, x, wide)
        dx = self.training.combine(narrow, saved.back, torch.ones_like(saved.weights))
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            weights, _ = _route(saved.experts, leaf, batch)
            (through_router,) = torch.autograd.grad(weights, leaf, slopes.to(weights.dtype))
        return dx.add_(through_router)

    def _gate_up_back(
        self, saved: SavedExperts, x: torch.Tensor, wide: torch.Tensor
    ) -> Generator[None, None, torch.Tensor]:
        """Input x [T, H] of `forward`, and the gradient of gate_up [P, 2 I] -> that of rows [P, H]."""
        rows, narrow = x.index_select(0, saved.tokens), None
        for first, part in zip(saved.first, wide.chunk(len(saved.first), dim=1), strict=True):
            own = part.contiguous()
            found, backs = rows_back(self.training, first, own)
            yield
            add_gradients(self.training, first, own, backs, rows)
            narrow = found if narrow is None else narrow.add_(found)
        assert narrow is not None  # noqa: S101 - there is a product
        return narrow


def _route(experts: Experts, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and indices of each token's experts, [T, k], by the router's own code."""
    with replay.replaying(batch, experts.number, experts.count, experts.kind):
        _, weights, routes = experts.router(x)
    return weights, routes
