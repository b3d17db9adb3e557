"""The multi-LoRA linear with its gradients: the input's, through the frozen weight and the rows' own A and B, and
those of A and B, added directly to their policy's gradient, by segment. `routed` is the same for stacked experts."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mint_engine.training.batch import Batch, Part, Segment


class Current:
    """The batch being computed. Modules look it up here, since most are passed nothing but their input."""

    batch: Batch | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The batch's segments."""
        return self.batch.segments if self.batch is not None else ()


class TrainedLinear(nn.Module):
    """A linear module that shares the base's frozen weight and adds each row's own adapter."""

    def __init__(self, linear: nn.Module, path: str, current: Current) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._path, self._current = path, current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, T, in] -> [1, T, out]"""
        y = functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        owned = [(each, each.parts[self._path]) for each in self._current.segments if self._path in each.parts]
        if not owned:
            return y
        dtype, x = owned[0][1].a.dtype, x.flatten(0, -2)
        if y.dtype != dtype:  # the base keeps this module in float32
            apart: torch.Tensor = AddDelta.apply(torch.zeros_like(y, dtype=dtype).flatten(0, -2), x.to(dtype), owned)
            return y + apart.view(y.shape)
        delta: torch.Tensor = AddDelta.apply(y.view(x.shape[0], y.shape[-1]), x, owned)
        return delta.view(y.shape)


class AddDelta(torch.autograd.Function):
    """Add the adapters' output for x [T, in] to y [T, out], in place."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, owned: list[tuple[Segment, Part]]) -> torch.Tensor:
        """Keeps the middle products for the backward: they are only as wide as the rank."""
        middles = []
        for segment, part in owned:
            span = slice(segment.start, segment.stop)
            middles.append(shrink(x[span], part))
            y[span].addmm_(middles[-1], part.b[0])
        ctx.mark_dirty(y)
        ctx.save_for_backward(x)
        ctx.middles, ctx.owned = middles, owned
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the input's gradient through the adapters; autograd adds the part through the frozen weight."""
        (dy,), (x,) = gradients, ctx.saved_tensors
        dx = torch.zeros_like(x)
        for (segment, part), middle in zip(ctx.owned, ctx.middles, strict=True):
            span = slice(segment.start, segment.stop)
            back = accumulate(x[span], dy[span], middle, part)
            dx[span] = back @ part.a[0]
        return dy, dx, None


def shrink(x: torch.Tensor, part: Part, expert: int = 0) -> torch.Tensor:
    """x [n, in] -> x A^T scaling [n, r]"""
    return (x @ part.a[expert].t()).mul_(part.scaling)


def accumulate(x: torch.Tensor, dy: torch.Tensor, middle: torch.Tensor, part: Part, expert: int = 0) -> torch.Tensor:
    """Add the rows' gradients to those of one A and B; returns dy B scaling [n, r]."""
    back = (dy @ part.b[expert].t()).mul_(part.scaling)
    part.a_gradient[expert].add_(back.t() @ x)
    part.b_gradient[expert].add_(middle.t() @ dy)
    return back
