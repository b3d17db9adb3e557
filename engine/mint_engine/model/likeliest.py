"""Each row's likeliest token, in the logits' own dtype, and whether the row is sound."""

import math

import torch

from mint_engine.kernels.library import find_kernels


def likeliest(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """The likeliest token of each row [n, V], the first of equals; and whether that peak is finite.

    A row with a NaN or an infinite peak, or nothing but -inf, is not sound: its weights overflowed.
    """
    kernels = find_kernels(logits.dtype, logits.device)
    if kernels is not None:
        tokens, peaks = kernels.argmax(logits.contiguous())
    else:
        peaks, tokens = logits.max(dim=-1)
    return tokens.tolist(), [math.isfinite(peak) for peak in peaks.tolist()]
