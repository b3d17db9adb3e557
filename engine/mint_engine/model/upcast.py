"""Products of bfloat16 matrices on CPUs without them: upcast to float32, multiplied there, rounded once.

On a CPU that does not multiply bfloat16 (x86 before AVX-512), torch multiplies number by number: at a tenth of the
speed of float32 on the same cores, and at a hundredth if the right side is row-major, as in every backward. So this
process replaces torch's kernels for these products. Sums are float32 and rounded once, as with bfloat16 instructions.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from mint_engine.model.device import multiplies_bfloat16

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
_IN_PLACE = ("addmm_", "baddbmm_")
BAND = 1 << 24  # numbers of a matrix that are upcast at a time: 64 MB

_kept: list[torch.library.Library] = []  # kernels disappear with their library


def upcasts(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of that type are upcast there: by a CPU that does not multiply bfloat16."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bfloat16()


def fit_products(dtype: torch.dtype, device: torch.device) -> None:
    """Upcast this process's products if it computes in bfloat16 on a CPU that does not multiply it."""
    if upcasts(dtype, device):
        upcast_products()


@cache
def upcast_products() -> None:
    """Replace torch's kernels of these products for the whole process."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in PRODUCTS:
        library.impl(name, _product(name), "CPU")
    for name in _IN_PLACE:
        library.impl(name, _product_in_place(name.removesuffix("_")), "CPU")
    _kept.append(library)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """torch's scaled_dot_product_attention, upcast here because its products are inside its own kernels."""
    if not upcasts(query.dtype, query.device):
        return functional.scaled_dot_product_attention(query, key, value, **options)
    wide = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
    return wide.bfloat16()


def _product(name: str) -> Callable[..., torch.Tensor]:
    """Return an upcast product of the last two arguments, added to the argument before them if there is one."""
    # Torch's own product, by its `out` variant: that was not replaced, and other threads run meanwhile.
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
    """Bands of a matrix's columns to take at a time: a large matrix is never upcast as a whole."""
    width = right.shape[-1]
    each = max(1, min(width, BAND // max(1, right.numel() // max(1, width))))
    return [slice(first, first + each) for first in range(0, width, each)]
