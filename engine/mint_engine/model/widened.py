"""Products of bfloat16 matrices on CPUs that have none: widened to float32, multiplied there, rounded once.

Where a CPU multiplies no bfloat16 (x86 before AVX-512), torch does so number by number: at a tenth of what the same
cores do in float32, and a hundredth where the right side lies row by row, as on every way back. So this process gives
torch other kernels for these products. Sums are taken in float32 and rounded once, as by instructions for bfloat16.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from mint_engine.model.device import multiplies_bfloat16

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
_IN_PLACE = ("addmm_", "baddbmm_")
BAND = 1 << 24  # numbers of a matrix that are widened at a time: 64 MB

_kept: list[torch.library.Library] = []  # kernels go when their library does


def widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in that type are widened there: by a CPU that multiplies no bfloat16."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bfloat16()


def fit_products(dtype: torch.dtype, device: torch.device) -> None:
    """Widen products for all of this process, where it is to compute in bfloat16 on a CPU that multiplies none."""
    if widens(dtype, device):
        widen_products()


@cache
def widen_products() -> None:
    """Put other kernels in the place of torch's, for all of this process."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in PRODUCTS:
        library.impl(name, _product(name), "CPU")
    for name in _IN_PLACE:
        library.impl(name, _product_in_place(name.removesuffix("_")), "CPU")
    _kept.append(library)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """torch's scaled_dot_product_attention; its products are within its own kernels, and so widened here."""
    if not widens(query.dtype, query.device):
        return functional.scaled_dot_product_attention(query, key, value, **options)
    wide = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
    return wide.bfloat16()


def _product(name: str) -> Callable[..., torch.Tensor]:
    """The product of the last two of its arguments, and perhaps what it is added to before them."""
    # Torch's own by way of what it is asked to write to: that was not replaced, and other threads run meanwhile.
    plain: Callable[..., torch.Tensor] = getattr(torch, name)

    def multiply(*values: torch.Tensor, **factors: Any) -> torch.Tensor:
        *added, left, right = values
        found = left.new_empty((*left.shape[:-1], right.shape[-1]))
        if any(each.dtype != torch.bfloat16 for each in values):
            return plain(*values, **factors, out=found)
        left = left.float()
        for columns in _bands(right):
            beside = [each[..., columns] if each.dim() and each.shape[-1] > 1 else each for each in added]
            some = right[..., columns].float()
            wide = left.new_empty((*left.shape[:-1], some.shape[-1]))
            found[..., columns] = plain(*(each.float() for each in beside), left, some, **factors, out=wide)
        return found

    return multiply


def _product_in_place(name: str) -> Callable[..., torch.Tensor]:
    plain: Callable[..., torch.Tensor] = getattr(torch, name)

    def multiply(own: torch.Tensor, *values: torch.Tensor, **factors: Any) -> torch.Tensor:
        if own.dtype != torch.bfloat16:
            return plain(own, *values, **factors, out=own)
        return own.copy_(plain(own, *values, **factors))

    return multiply


def _bands(right: torch.Tensor) -> list[slice]:
    """Columns of a matrix that are taken at a time: some of a large one's, so that it is never widened whole."""
    width = right.shape[-1]
    each = max(1, min(width, BAND // max(1, right.numel() // max(1, width))))
    return [slice(first, first + each) for first in range(0, width, each)]
