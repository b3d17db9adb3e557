"""Products in bfloat16 on CPUs without them; each in a process of its own, since widening is permanent."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from mint_engine.model.base import load_base
from mint_engine.model.device import multiplies_bfloat16
from mint_engine.model.upcast import attend, upcast_products
from tests.engine.running import save_base
from tests.waiting import PATIENCE_S

Matrices = tuple[torch.Tensor, ...]
Product = Callable[..., torch.Tensor]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight, bias)


def without_bias(x: torch.Tensor, weight: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def batched(x: torch.Tensor, weight: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x.view(4, -1, x.shape[1]), weight.t().expand(4, -1, -1))


def added_in_place(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = bias.expand(x.shape[0], -1).clone()
    y[4:].addmm_(x[4:], weight.t())
    return y


def added_in_place_batched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = bias.expand(4, x.shape[0] // 4, -1).clone()
    return y.baddbmm_(x.view(4, -1, x.shape[1]), weight.t().expand(4, -1, -1), beta=0.5)


def attended(x: torch.Tensor, weight: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values all depend on x."""
    queries, keys = x.view(1, 4, -1, x.shape[1]), (x[:32] + weight[:32]).view(1, 2, -1, x.shape[1])
    seen = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril()
    return attend(queries, keys, keys, attn_mask=seen, enable_gqa=True)


PRODUCTS = [linear, without_bias, batched, added_in_place, added_in_place_batched, attended]


def matrices(dtype: torch.dtype) -> Matrices:
    """x [64, 96], weight [80, 96], bias [80], with values that bfloat16 can hold."""
    made = torch.Generator().manual_seed(3)
    return tuple(torch.randn(size, generator=made).bfloat16().to(dtype) for size in ((64, 96), (80, 96), (80,)))


def computed(product: Product, dtype: torch.dtype) -> Matrices:
    """A product's result and the gradient of its first matrix, in this process."""
    x, weight, bias = matrices(dtype)
    y = product(x.requires_grad_(), weight, bias)
    (back,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), back


def upcast(product: Product, dtype: torch.dtype) -> Matrices:
    """The same, in a process whose products are upcast."""
    upcast_products()
    return computed(product, dtype)


def in_bands(dtype: torch.dtype) -> Matrices:
    """Like `upcast`, for a linear whose weight is larger than the band that is upcast at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mint_engine.model.upcast.BAND", 1000)
        return upcast(linear, dtype)


def mixed() -> None:
    """Multiply bfloat16 by float32 where products are upcast."""
    upcast_products()
    torch.mm(matrices(torch.bfloat16)[0], matrices(torch.float32)[1].t())


def loaded(path: Path) -> bool:
    """Whether loading a base in bfloat16 upcasts the process's products."""
    load_base(path, torch.bfloat16, torch.device("cpu"))
    return upcast_products.cache_info().currsize == 1


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("product", PRODUCTS)
def test_both_directions_are_those_of_float32_rounded_once(product: Product, elsewhere: Executor) -> None:
    found = elsewhere.submit(upcast, product, torch.bfloat16).result(PATIENCE_S)
    for ours, exact in zip(found, computed(product, torch.float32), strict=True):
        assert ours.dtype == torch.bfloat16
        # Sums differ only by their order; attention's operand here is itself a rounded sum.
        torch.testing.assert_close(ours.float(), exact, rtol=2**-8, atol=0.1 if product is attended else 1e-5)


def test_a_large_weight_upcast_in_bands_gives_the_same(elsewhere: Executor) -> None:
    some = elsewhere.submit(in_bands, torch.bfloat16)
    whole = elsewhere.submit(upcast, linear, torch.bfloat16)
    for ours, at_once in zip(some.result(PATIENCE_S), whole.result(PATIENCE_S), strict=True):
        torch.testing.assert_close(ours, at_once, rtol=2**-7, atol=1e-5)


def test_numbers_of_two_kinds_are_refused_as_ever(elsewhere: Executor) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        elsewhere.submit(mixed).result(PATIENCE_S)


@pytest.mark.parametrize("product", PRODUCTS)
def test_float32_is_left_as_it_was(product: Product, elsewhere: Executor) -> None:
    found = elsewhere.submit(upcast, product, torch.float32).result(PATIENCE_S)
    for ours, before in zip(found, computed(product, torch.float32), strict=True):
        torch.testing.assert_close(ours, before, rtol=1e-5, atol=1e-6)


def test_a_base_in_bfloat16_widens_them_where_the_cpu_has_none(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(loaded, save_base(tmp_path / "base")).result(PATIENCE_S) != multiplies_bfloat16()
