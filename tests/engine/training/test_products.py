"""The lean pass's matrix products, with each run's adapter, are checked against plain torch and its autograd."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mint_engine.training.batch import Part, Segment
from mint_engine.training.products import Product, Rows, Target, multiply, multiply_back
from tests.engine.training.kernel_inputs import DTYPES, kernels_of, near, normal

# (in, out): odd sizes; whole tiles; more inputs than are processed at once; more outputs than caches hold, with few
# and with many inputs; more inputs than are processed in parts
SHAPES = [(90, 150), (33, 64), (600, 160), (96, 704), (768, 800), (1601, 64), (1600, 150)]
BOUNDS = (0, 64, 64, 750, 774)  # the second expert has no rows, the third more than are processed at once
# First row, row count, expert, segment; rows 40 to 47 belong to no run.
RUNS = ((0, 5, 0, 0), (5, 35, 0, 1), (48, 16, 0, 2), (64, 1, 2, 0), (65, 685, 2, 1), (750, 24, 3, 2))
RANKS = (1, 8, 33)


def product_of(shape: tuple[int, int], dtype: torch.dtype) -> Product:
    wide, high = shape
    targets = (Target("first", slice(0, 70 if high > 70 else 20)), Target("second", slice(high - 50, high)))
    weight = normal(len(BOUNDS) - 1, high, wide, seed=1, dtype=dtype) * wide**-0.5
    return Product(weight, normal(high, seed=2, dtype=dtype), targets)


def segments_of(product: Product) -> list[Segment]:
    """Return segments of three policies, the last of which does not adapt the second target."""
    experts, _, wide = product.weight.shape
    found = []
    for number, rank in enumerate(RANKS):
        parts = {}
        for at, target in enumerate(product.targets[: 1 if number == 2 else 2]):
            size = target.columns.stop - target.columns.start
            a = normal(experts, rank, wide, seed=10 + number + at, dtype=product.weight.dtype) * wide**-0.5
            b = normal(experts, rank, size, seed=20 + number + at, dtype=product.weight.dtype)
            parts[target.path] = Part(a, b, 0.5, torch.ones(a.shape), torch.ones(b.shape))
        found.append(Segment(0, 0, number, parts))
    return found


def rows_of(segments: Sequence[Segment], runs: Sequence[tuple[int, ...]] = RUNS) -> Rows:
    return Rows(torch.tensor(BOUNDS), np.asarray(runs, dtype=np.int64), segments)


def plainly(
    product: Product, x: torch.Tensor, rows: Rows, leaves: dict[tuple[int, str], list[torch.Tensor]]
) -> torch.Tensor:
    """Compute the same product in float64, differentiably."""
    weight, bias = product.weight.double(), product.bias
    assert bias is not None
    spans = itertools.pairwise(BOUNDS)
    y = torch.cat([x[first:last] @ weight[expert].t() for expert, (first, last) in enumerate(spans)]) + bias.double()
    added = torch.zeros_like(y)
    for first, count, expert, number in rows.runs.tolist():
        own = slice(first, first + count)
        for target in product.targets:
            if (part := rows.segments[number].parts.get(target.path)) is not None:
                a, b = leaves[number, target.path]
                added[own, target.columns] += x[own] @ a[expert].t() @ b[expert] * part.scaling
    return y + added


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_as_autograd_has_them(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    kernels, product = kernels_of(dtype), product_of(shape, dtype)
    segments = segments_of(product)
    rows, x, dy = rows_of(segments), *(normal(BOUNDS[-1], size, seed=3, dtype=dtype) for size in shape)
    given = x.double().requires_grad_()
    leaves = {
        (number, path): [each.double().requires_grad_() for each in (part.a, part.b)]
        for number, segment in enumerate(segments)
        for path, part in segment.parts.items()
    }
    expected = plainly(product, given, rows, leaves)
    back, *gradients = torch.autograd.grad(expected, [given, *itertools.chain(*leaves.values())], dy.double())
    y, kept = multiply(kernels, product, x, rows)
    near(y, expected.detach(), dtype)
    near(multiply_back(kernels, kept, dy, x), back, dtype)
    parts = [segments[number].parts[path] for number, path in leaves]
    found = [each for part in parts for each in (part.a_gradient, part.b_gradient)]
    for one, other in zip(found, gradients, strict=True):
        near(one, other + 1, dtype)  # gradients add to the ones that were there


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_depends_on_nothing_outside(dtype: torch.dtype) -> None:
    """A run is bit-identical alone, without its neighbours' adapters, and beside NaN."""
    kernels, product = kernels_of(dtype), product_of((90, 150), dtype)
    x, dy = (normal(BOUNDS[-1], size, seed=3, dtype=dtype) for size in (90, 150))
    together = segments_of(product)
    y, kept = multiply(kernels, product, x, rows_of(together))
    dx = multiply_back(kernels, kept, dy, x)
    for first, count, expert, number in RUNS:
        own, alone = slice(first, first + count), segments_of(product)
        spoiled, dspoiled = torch.full_like(x, torch.nan), torch.full_like(dy, torch.nan)
        spoiled[own], dspoiled[own] = x[own], dy[own]
        by_itself, kept = multiply(kernels, product, spoiled, rows_of(alone, [(first, count, expert, number)]))
        assert torch.equal(by_itself[own], y[own])
        assert torch.equal(multiply_back(kernels, kept, dspoiled, spoiled)[own], dx[own])
        for path, part in alone[number].parts.items():
            beside = together[number].parts[path]
            assert torch.equal(part.a_gradient[expert], beside.a_gradient[expert])
            assert torch.equal(part.b_gradient[expert], beside.b_gradient[expert])


@pytest.mark.parametrize(("count", "shape"), [(21, (90, 150)), (800, (96, 704))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_whatever_is_beside_it(dtype: torch.dtype, count: int, shape: tuple[int, int]) -> None:
    """This holds within a tile, and with more outputs than caches hold."""
    wide, high = shape
    kernels, product = kernels_of(dtype), Product(normal(1, high, wide, seed=1, dtype=dtype), None, ())
    x, none = normal(count, wide, seed=2, dtype=dtype), np.zeros((0, 4), dtype=np.int64)
    y, _ = multiply(kernels, product, x, Rows(torch.tensor([0, count]), none, ()))
    for row in (*range(20), count - 1):
        alone, _ = multiply(kernels, product, x[row : row + 1], Rows(torch.tensor([0, 1]), none, ()))
        assert torch.equal(alone[0], y[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_may_share_one_weight(dtype: torch.dtype) -> None:
    kernels, weight = kernels_of(dtype), normal(150, 90, seed=1, dtype=dtype)
    x, none = normal(20, 90, seed=2, dtype=dtype), np.zeros((0, 4), dtype=np.int64)
    shared, one = Product(weight.expand(2, -1, -1), None, ()), Product(weight[None], None, ())
    found, _ = multiply(kernels, shared, x, Rows(torch.tensor([0, 7, 20]), none, ()))
    assert torch.equal(found, multiply(kernels, one, x, Rows(torch.tensor([0, 20]), none, ()))[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixing_pairs_and_back(dtype: torch.dtype) -> None:
    kernels, order = kernels_of(dtype), torch.randperm(40, generator=torch.Generator().manual_seed(1)).view(20, 2)
    rows, dy = normal(40, 90, seed=2, dtype=dtype), normal(20, 90, seed=3, dtype=dtype)
    weights = normal(20, 2, seed=4, dtype=torch.float32)
    given, leaf = rows.double().requires_grad_(), weights.double().requires_grad_()
    expected = (given[order] * leaf.unsqueeze(-1)).sum(dim=1)
    of_rows, of_weights = torch.autograd.grad(expected, [given, leaf], dy.double())
    near(kernels.combine(rows, order, weights), expected.detach(), dtype)
    back, slopes = kernels.combine_back(rows, order, weights, dy)
    near(back, of_rows, dtype)
    near(slopes, of_weights, dtype)
