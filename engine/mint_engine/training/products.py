"""Products of the lean pass, both directions: rows by frozen weights, and each run of rows by its policy's A and B.

A product is a single call, however many experts and policies share its rows. Letters in shapes: R rows, E experts (1
for a linear that all rows use).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.training.batch import Batch, Segment
from mint_engine.training.kernels import ADAPTER_RUN, TrainingKernels
from mint_engine.training.routed import Routing


@dataclass(frozen=True)
class Target:
    """A module that adapters may target, as columns of a product."""

    path: str
    columns: slice


@dataclass(frozen=True)
class Product:
    """y = x W^T + bias, for several modules at once. weight [E, out, in], bias [out]"""

    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Rows:
    """R rows ordered by expert, and within an expert by segment."""

    bounds: torch.Tensor  # [E + 1] int64: where each expert's rows begin
    runs: NDArray[np.int64]  # [n, 4]: first row, rows, expert, segment
    segments: Sequence[Segment]


@dataclass(frozen=True)
class Saved:
    """What a product's backward needs from its forward, apart from the input rows."""

    product: Product
    rows: Rows
    adapters: NDArray[np.void]  # `ADAPTER_RUN`: what adapters add, in the order of runs
    middles: torch.Tensor  # x A^T scaling of each of them


def straight(batch: Batch) -> Rows:
    """Return a batch's rows in their own order, for a linear that all use."""
    runs = [(segment.start, segment.stop - segment.start, 0, at) for at, segment in enumerate(batch.segments)]
    return Rows(torch.tensor([0, batch.rows]), np.asarray(runs, dtype=np.int64).reshape(-1, 4), batch.segments)


def sorted_rows(routing: Routing, batch: Batch) -> Rows:
    """Return the rows of sorted pairs of token and expert."""
    runs = [(run.rows.start, run.rows.stop - run.rows.start, run.expert, run.segment) for run in routing.runs]
    return Rows(torch.tensor(routing.bounds), np.asarray(runs, dtype=np.int64).reshape(-1, 4), batch.segments)


def multiply(kernels: TrainingKernels, product: Product, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, Saved]:
    """x [R, in] -> y [R, out] with every run's adapter, and what the backward needs."""
    adapters = _adapter_runs(product, rows)
    y, middles = kernels.multiply_grouped(x, product.weight, product.bias, rows.bounds, adapters)
    return y, Saved(product, rows, adapters, middles)


def multiply_back(kernels: TrainingKernels, saved: Saved, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dy [R, out] and the inputs of `multiply` -> dx [R, in]; adds to the gradients of A and B."""
    dx, backs = rows_back(kernels, saved, dy)
    add_gradients(kernels, saved, dy, backs, x)
    return dx


def rows_back(kernels: TrainingKernels, saved: Saved, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """dy [R, out] -> dx [R, in], and `backs` for `add_gradients`, to be called once x is computed again."""
    return kernels.multiply_grouped_back(dy, saved.product.weight, saved.rows.bounds, saved.adapters)


def add_gradients(
    kernels: TrainingKernels, saved: Saved, dy: torch.Tensor, backs: torch.Tensor, x: torch.Tensor
) -> None:
    """Add to the gradients of A and B; dy and `backs` are from `rows_back`, x [R, in] is the input of `multiply`."""
    kernels.add_gradients(x, dy, saved.adapters, saved.middles, backs)


def _adapter_runs(product: Product, rows: Rows) -> NDArray[np.void]:
    """Return what each run's policy adds to a product; see `adapter_run.h`."""
    of_segments = np.zeros((len(rows.segments), len(product.targets)), dtype=ADAPTER_RUN)
    several = len(rows.bounds) > 2
    experts = np.zeros((*of_segments.shape, 4), dtype=np.uint64)  # bytes between the parts of successive experts
    for at, segment in enumerate(rows.segments):
        for number, target in enumerate(product.targets):
            part = segment.parts.get(target.path)
            if part is not None:
                (_, rank, wide), high = part.a.shape, part.b.shape[2]
                if several:
                    experts[at, number] = [
                        each.itemsize * rank * size
                        for each, size in (
                            (part.a, wide),
                            (part.b, high),
                            (part.a_gradient, wide),
                            (part.b_gradient, high),
                        )
                    ]
                of_segments[at, number] = (
                    0, 0, target.columns.start, high, rank, 0, *part.addresses, part.scaling,
                )  # fmt: skip
    first, count, expert, segment = rows.runs.T
    adapters: NDArray[np.void] = of_segments[segment]
    adapters["first"], adapters["rows"] = first[:, None], count[:, None]
    if several:
        for place, name in enumerate(("a", "b", "a_gradient", "b_gradient")):
            adapters[name] += expert[:, None].astype(np.uint64) * experts[segment, :, place]
    adapters = adapters[adapters["rank"] > 0]
    sizes = adapters["rows"] * (adapters["rank"] + adapters["rank"] % 2)
    adapters["middle"] = np.cumsum(sizes) - sizes
    return adapters
