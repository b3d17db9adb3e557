"""Finds the kernels for GPUs, if the device runs them and they compute there what plain torch does."""

from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING

import structlog
import torch
from torch import nn

from mint_engine.model.quantised_experts import QuantisedWeight, kept_stacks

if TYPE_CHECKING:
    from mint_engine.gpu.experts import ExpertProduct
    from mint_engine.gpu.kernels import GpuKernels

_log = structlog.get_logger(__name__)


@cache
def find_gpu_kernels(dtype: torch.dtype, device: torch.device, *, latents: bool) -> "GpuKernels | None":
    """Return kernels for that device; None for a CPU, or if they cannot be used there. The log then says why.

    Only those are tried that attend to what a base caches: `latents`, or keys and values. They are compiled at first
    use, so this takes some seconds unless the compiler's cache has them.
    """
    if device.type != "cuda":
        return None
    try:
        from mint_engine.gpu.kernels import GpuKernels  # torch's builds for CPUs bring no Triton
        from mint_engine.gpu.proof import prove

        kernels = GpuKernels()
        prove(kernels, dtype, device, latents=latents)
    except Exception as error:  # noqa: BLE001 - no C compiler, no driver, a GPU that the compiler does not know, ...
        _log.warning("gpu_kernels_unavailable", why=f"{type(error).__name__}: {error}", device=str(device))
        return None
    return kernels


def put_expert_products(model: nn.Module, *, use: bool) -> None:
    """Let own kernels multiply by a model's quantised experts, if they do it as plain torch does; none if not `use`.

    Torch multiplies by the others; the log says why, once for all alike. Programs are compiled here, not by steps.
    """
    refused = dict[Hashable, str]()  # why, by form; "": they are used
    for path, experts, weight in kept_stacks(model):
        weight.product = None
        if use:
            from mint_engine.gpu.experts import ExpertProduct

            stack = weight.coded()
            product = ExpertProduct.of(stack) if stack is not None else None
            form = product.form if product is not None else None
            if form not in refused:
                refused[form] = _refusal(product, weight, transposed=bool(experts.is_transposed))
                if refused[form]:
                    _log.warning("expert_kernels_unavailable", linear=path, why=refused[form])
            weight.product = product if not refused[form] else None


def _refusal(product: "ExpertProduct | None", weight: QuantisedWeight, *, transposed: bool) -> str:
    """Return why a product is not used; "" if it is."""
    from mint_engine.gpu.experts import prove

    if product is None:
        return "no kernel reads its format"
    try:
        prove(product, weight, transposed=transposed)
    except Exception as error:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: {error}"
    return ""
