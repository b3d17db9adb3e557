"""Routed experts with the gradients of many policies, registered with transformers under the name "mint_training".

Pairs of token and expert are sorted by expert, so that its frozen weight is read once for all policies, and within an
expert by segment, so that a policy's A and B of that expert are applied only to its own rows. Each such run is padded
to a multiple of `ROW_MULTIPLE` rows: with fewer, products round differently, and for every new number of rows oneDNN
first builds a kernel, which takes longer than a run's narrow products (5.3 ms against 0.4). Gradients flow to the
inputs and, through the weights of a token's experts, to its router's input; the router itself is not trained. With
several ranks, each holds some of the experts and computes only their pairs.

Letters in shapes: T tokens, k experts per token, P = T k pairs, R rows, E experts held, H hidden, r rank.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.model.expert_product import add_bias, multiply_each
from mint_engine.model.quantised_experts import Product, QuantisedWeight, by_expert
from mint_engine.training.attend import cuts
from mint_engine.training.batch import ROW_MULTIPLE, Batch, Part, Segment
from mint_engine.training.delta import Current, accumulate, shrink
from mint_engine.training.pieces import PIECE_ROWS

NAME = "mint_training"
# Most numbers that pairs bring to both linears of their experts at once, unless a piece has more: autograd takes 11
# to 17 bytes for each in bfloat16 (by tiny bases on a CPU), so 1.5 to 2.3 GB. With fewer, each expert would have few
# rows in each of many products.
AT_ONCE = 1 << 27


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one expert and one segment."""

    rows: slice
    expert: int
    segment: int


@dataclass(frozen=True)
class Routing:
    """One layer's pairs in sorted order."""

    order: torch.Tensor  # [R] int64: row i is pair `order[i]` of token `order[i] // k`; P for a padding row
    back: torch.Tensor  # [P] int64: each pair's row; R if another rank holds its expert
    whole: bool  # no pair belongs to another rank
    bounds: tuple[int, ...]  # [E + 1]: where each expert's rows begin
    runs: tuple[Run, ...]  # in order; padding of the batch belongs to none


@dataclass(frozen=True)
class Stack:
    """One linear of all experts: weight [E, out, in], or [E, in, out] if transposed, bias [E, out]."""

    weight: torch.Tensor | QuantisedWeight
    bias: torch.Tensor | None
    transposed: bool
    modules: tuple[Module, ...]  # the parts of it that adapters may target

    def multiply(self, x: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """x [R, in] -> [R, out], each row by its expert, rounded like the sampler's."""
        if (product := self._product) is not None:
            y = product.multiply(x, _ends(bounds, x.device))
        else:
            y = multiply_each(self.weight, x, bounds, transposed=self.transposed)
        return y if self.bias is None else add_bias(y, self.bias, bounds)

    def multiply_back(self, dy: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """dy [R, out] -> the gradient of x [R, in]."""
        if (product := self._product) is not None:
            return product.multiply_back(dy, _ends(bounds, dy.device))
        found = [dy.new_empty(0, self.weight.shape[1 if self.transposed else 2])]
        for _, rows, weight in by_expert(self.weight, bounds):
            found.append(dy[rows] @ (weight.t() if self.transposed else weight))
        return torch.cat(found)

    @property
    def _product(self) -> Product | None:
        """By own kernels for GPUs, like the sampler's."""
        return self.weight.product if isinstance(self.weight, QuantisedWeight) else None


def _ends(bounds: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(bounds[1:], dtype=torch.int32, device=device)


def read_stack(experts: Any, name: str, modules: Sequence[Module]) -> Stack:
    """Read one linear of transformers' stacked experts, with those of `modules` that are part of it."""
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    own = tuple(module for module in modules if module.part_of.endswith(f".{name}"))
    return Stack(getattr(experts, name), bias, bool(experts.is_transposed), own)


@dataclass(frozen=True)
class RunPart:
    """A run, and the part that its policy adds to some of a stack's outputs."""

    run: Run
    outputs: slice
    part: Part


def register() -> None:
    """Register `forward` with transformers."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, forward)


def prepare(experts: Any, modules: Sequence[Module], current: Current, held: Cut) -> None:
    """Tell stacked experts their modules, which experts are held, and where to find the current batch."""
    experts.mint_trained = {name: read_stack(experts, name, modules) for name in ("gate_up_proj", "down_proj")}
    experts.mint_current, experts.mint_held = current, held


def forward(experts: Any, hidden: torch.Tensor, routes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """hidden [T, H], each token's experts [T, k] and their weights [T, k] -> [T, H].

    A long example's tokens are computed some at a time, which the backward computes again: all its pairs would take
    more memory than all that is kept of it.
    """
    batch: Batch = experts.mint_current.batch
    compute, parts = partial(_compute, experts, batch.segments), []
    sides = experts.mint_trained["down_proj"].weight.shape[1:]  # H and the inner size
    for some in cuts(hidden.shape[0], max(PIECE_ROWS, AT_ONCE // (routes.shape[1] * sum(sides)))):
        rows = slice(some.start, some.stop)
        given = hidden[rows], routes[rows], weights[rows], batch.owners[rows]
        whole = len(some) == hidden.shape[0] or not torch.is_grad_enabled()
        parts.append(
            compute(*given) if whole else checkpoint(compute, *given, use_reentrant=False, preserve_rng_state=False)
        )
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _compute(
    experts: Any, segments: Sequence[Segment], hidden: torch.Tensor, routes: torch.Tensor, weights: torch.Tensor,
    owners: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """`forward` for some tokens, of segments `owners` [T]."""
    tokens, each = routes.shape
    routing = sort_routes(routes, owners, experts.mint_held, len(segments))
    spread = hidden.unsqueeze(1).expand(-1, each, -1).reshape(tokens * each, -1)
    x = _Spread.apply(spread, routing)
    stacks: dict[str, Stack] = experts.mint_trained
    inner = experts._apply_gate(_multiply(x, stacks["gate_up_proj"], routing, segments))
    out = _multiply(inner, stacks["down_proj"], routing, segments)
    out = _Collect.apply(out, routing).view(tokens, each, -1)
    mixed: torch.Tensor = (out * weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)
    return mixed


def sort_routes(
    routes: torch.Tensor, owners: torch.Tensor, held: Cut, segments: int, multiple: int = ROW_MULTIPLE
) -> Routing:
    """Sort the pairs of routes [T, k] with experts in `held` by expert and segment; `owners` [T] gives the segments.

    Rows that pad a batch have the segment number `segments`. Each run is padded to a `multiple` of rows.
    """
    flat, each = routes.reshape(-1).long() - held.start, routes.shape[1]
    own = (flat >= 0) & (flat < held.size)
    keys, order = torch.sort(
        torch.where(own, flat, held.size) * (segments + 1) + owners.repeat_interleave(each), stable=True
    )
    pairs, count = order.shape[0], int(own.sum())
    keys, order = keys[:count], order[:count]  # pairs of other ranks' experts come last
    kinds, counts = torch.unique_consecutive(keys, return_counts=True)
    padded = (counts + multiple - 1) // multiple * multiple
    shifts = (padded - counts).cumsum(0) - (padded - counts)  # padding rows before each run
    rows = torch.arange(order.shape[0], device=order.device) + shifts.repeat_interleave(counts)
    total = int(padded.sum())
    back, spread = order.new_full((pairs,), total), order.new_full((total,), pairs)
    back[order], spread[rows] = rows, order
    runs, sizes, row = [], [0] * held.size, 0
    for kind, count in zip(kinds.tolist(), padded.tolist(), strict=True):
        expert, segment = divmod(kind, segments + 1)
        sizes[expert] += count
        if segment < segments:
            runs.append(Run(slice(row, row + count), expert, segment))
        row += count
    bounds = tuple(itertools.accumulate(sizes, initial=0))
    return Routing(spread, back, count == pairs, bounds, tuple(runs))


def own_parts(stack: Stack, routing: Routing, segments: Sequence[Segment]) -> list[RunPart]:
    """Return what adapters add to a stack's outputs, run by run."""
    return [
        RunPart(run, module.outputs, part)
        for run in routing.runs
        for module in stack.modules
        if (part := segments[run.segment].parts.get(module.path)) is not None
    ]


class _Product(torch.autograd.Function):
    """x [R, in] by the experts' frozen weights and each run's own adapter -> [R, out]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stack: Stack, routing: Routing, owned: list[RunPart]) -> torch.Tensor:
        """Keeps the middle products for the backward: they are only as wide as the rank."""
        y, middles = stack.multiply(x, routing.bounds), []
        for each in owned:
            middles.append(shrink(x[each.run.rows], each.part, each.run.expert))
            y[each.run.rows, each.outputs].addmm_(middles[-1], each.part.b[each.run.expert])
        ctx.save_for_backward(x)
        ctx.middles, ctx.stack, ctx.routing, ctx.owned = middles, stack, routing, owned
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the input's gradient; those of A and B are added directly to their policies' gradients."""
        (dy,), (x,) = gradients, ctx.saved_tensors
        dx = ctx.stack.multiply_back(dy, ctx.routing.bounds)
        for each, middle in zip(ctx.owned, ctx.middles, strict=True):
            rows, expert = each.run.rows, each.run.expert
            back = accumulate(x[rows], dy[rows, each.outputs], middle, each.part, expert)
            dx[rows].addmm_(back, each.part.a[expert])
        return dx, None, None, None


class _Spread(torch.autograd.Function):
    """Pairs [P, *] to their rows [R, *], zeros for padding; autograd's own backward would add rows one by one."""

    @staticmethod
    def forward(ctx: Any, pairs: torch.Tensor, routing: Routing) -> torch.Tensor:
        """-> [R, *]"""
        ctx.routing = routing
        return spread(pairs, routing)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[R, *] -> [P, *]"""
        return collect(gradients[0], ctx.routing), None


class _Collect(torch.autograd.Function):
    """Rows [R, *] to their pairs [P, *]: the reverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        """-> [P, *]"""
        ctx.routing = routing
        return collect(rows, routing)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[P, *] -> [R, *]"""
        return spread(gradients[0], ctx.routing), None


def spread(pairs: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Return pairs [P, *] as rows [R, *], zeros for padding rows."""
    return functional.pad(pairs, (0, 0, 0, 1)).index_select(0, routing.order)


def collect(rows: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Return rows [R, *] as pairs [P, *], zeros for pairs of other ranks."""
    return (rows if routing.whole else functional.pad(rows, (0, 0, 0, 1))).index_select(0, routing.back)


def _multiply(x: torch.Tensor, stack: Stack, routing: Routing, segments: Sequence[Segment]) -> torch.Tensor:
    y: torch.Tensor = _Product.apply(x, stack, routing, own_parts(stack, routing, segments))
    return y
