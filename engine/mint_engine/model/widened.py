"""Products of bfloat16 matrices on CPUs that have none: widened to float32, multiplied there, rounded once.

Where a CPU multiplies no bfloat16 (x86 before AVX-512), torch does so number by number: at a tenth of what the same
cores do in float32, and a hundredth where the right side lies row by row, as on every way back. So this process gives
torch other kernels for these products. Sums are taken in float32 and rounded once, as by instructions for bfloat16.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mint_engine.model.device import multiplies_bfloat16

_NARROWED = {  # how many of an operator's results are of its arguments' type
    "mm": 1,
    "bmm": 1,
    "addmm": 1,
    "baddbmm": 1,
    "_scaled_dot_product_flash_attention_for_cpu": 1,  # beside the logarithms of sums, which are float32
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3,
}
_IN_PLACE = ("addmm_", "baddbmm_")  # of the operators of those names without the underscore


def fit_products(dtype: torch.dtype, device: torch.device) -> None:
    """Widen products for all of this process, where it is to compute in bfloat16 on a CPU that multiplies none."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not multiplies_bfloat16():
        widen_products()


@cache
def widen_products() -> None:
    """Put other kernels in the place of torch's, for all of this process."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, narrowed in _NARROWED.items():
        library.impl(name, _widened(name, narrowed), "CPU", with_keyset=True)
    for name in _IN_PLACE:
        library.impl(name, _in_place(name), "CPU", with_keyset=True)
    _kept.append(library)


_kept: list[torch.library.Library] = []  # kernels go when their library does


def _widened(name: str, narrowed: int) -> Callable[..., Any]:
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def multiply(keys: Any, *values: Any, **named: Any) -> Any:
        if values[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *values, **named)
        found = kernel.call_boxed(keys, *map(_wide, values), **{each: _wide(value) for each, value in named.items()})
        if isinstance(found, torch.Tensor):
            return found.bfloat16()
        return tuple(each.bfloat16() if at < narrowed else each for at, each in enumerate(found))

    return multiply


def _in_place(name: str) -> Callable[..., Any]:
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
    plain = getattr(torch.ops.aten, name.removesuffix("_")).default

    def multiply(keys: Any, own: torch.Tensor, *values: Any, **named: Any) -> torch.Tensor:
        if own.dtype != torch.bfloat16:
            kernel.call_boxed(keys, own, *values, **named)
            return own
        return own.copy_(plain(own, *values, **named))

    return multiply


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
