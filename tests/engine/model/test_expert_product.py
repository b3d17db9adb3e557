"""The base's products of stacked experts, in every layout, against a naive reference that goes row by row."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.cuts import Cut
from mint_engine.kernels.library import find_kernels
from mint_engine.model.expert_lora import Pairs, sort_pairs
from mint_engine.model.expert_product import lay_rows, multiply

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])


def some_experts(dtype: torch.dtype, shape: tuple[int, int, int], seed: int, *, turned: bool, biased: bool) -> Any:
    """Stacked experts as in transformers, without kernels: [E, out, in] of `shape`, or transposed if `turned`."""
    draw, experts = torch.Generator().manual_seed(seed), SimpleNamespace(has_bias=biased, is_transposed=turned)
    experts.mint_modules = SimpleNamespace(kernels=None)
    for name in ("gate_up_proj", "down_proj"):
        weight = torch.randn(shape, generator=draw).to(dtype)
        laid = weight.transpose(1, 2).contiguous() if turned else weight
        setattr(experts, name, torch.nn.Parameter(laid, requires_grad=False))
        if biased:
            setattr(experts, f"{name}_bias", torch.randn(shape[:2], generator=draw).to(dtype))
    return experts


def naive(experts: Any, x: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    """The products in float32, row by row."""
    rows = []
    for expert, (start, stop) in enumerate(itertools.pairwise(bounds)):
        own = experts.down_proj[expert].float()
        by = own.t() if experts.is_transposed else own
        bias = experts.down_proj_bias[expert].float() if experts.has_bias else 0
        rows += [by @ x[row].float() + bias for row in range(start, stop)]
    return torch.stack(rows)


def pairs_of(counts: list[int]) -> Pairs:
    """So many tokens for each expert."""
    routes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    return sort_pairs(routes, None, Cut(0, len(counts)))


@BOTH
@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    *(st.one_of(st.integers(1, 70), st.sampled_from((8, 32, 64))),) * 2,  # in, out
    st.booleans(),
    st.booleans(),
    st.integers(0, 1 << 20),
)
def test_products_of_any_layout_are_the_naive_ones(
    dtype: torch.dtype,
    tolerance: float,
    kernels: bool,
    counts: list[int],
    wide: int,
    high: int,
    turned: bool,
    biased: bool,
    seed: int,
) -> None:
    """Experts without rows, sizes that torch's grouped product takes and others, with gradients and without."""
    bounds = list(itertools.accumulate(counts, initial=0))
    experts = some_experts(dtype, (len(counts), high, wide), seed, turned=turned, biased=biased)
    x = torch.randn(bounds[-1], wide, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = naive(experts, x, bounds)
    if kernels and turned:
        lay_rows(experts)
        torch.testing.assert_close(naive(experts, x, bounds), expected)
    if kernels:
        experts.mint_modules.kernels = find_kernels(dtype, CPU) or pytest.skip("no compiled kernels here")
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            found = multiply(experts, "down_proj", x, pairs_of(counts))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * wide**0.5)


@BOTH
def test_gradients_reach_what_came_in(dtype: torch.dtype, tolerance: float) -> None:
    experts = some_experts(dtype, (3, 24, 40), 1, turned=True, biased=True)
    x = torch.randn(5, 40).to(dtype).requires_grad_()
    multiply(experts, "down_proj", x, pairs_of([2, 0, 3])).sum().backward()  # type: ignore[no-untyped-call]
    owners = [0, 0, 2, 2, 2]
    expected = torch.stack([experts.down_proj[owner].float().sum(1) for owner in owners])
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), expected, rtol=tolerance, atol=tolerance * 5)


def test_weights_are_turned_where_they_lie() -> None:
    """Whoever holds them reads the same weights as before; a second call changes nothing."""
    experts = some_experts(torch.bfloat16, (4, 24, 40), 2, turned=True, biased=False)
    weight, before = experts.gate_up_proj, experts.gate_up_proj.clone()
    at = weight.data_ptr()
    for _ in range(2):
        lay_rows(experts)
        assert weight.data_ptr() == at
        assert weight.transpose(1, 2).is_contiguous()
        assert torch.equal(weight, before)
