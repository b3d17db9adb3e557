"""Finds the kernels for GPUs, if the device runs them and they compute there what plain torch does."""

from functools import cache
from typing import TYPE_CHECKING

import structlog
import torch

if TYPE_CHECKING:
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
