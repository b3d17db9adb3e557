"""Each row's likeliest token, computed in the logits' own dtype, and whether the row is sound."""

import math

import torch

from mint_engine.kernels.library import find_kernels


def greedy_tokens(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Return the likeliest token of each row [n, V], the first among equals; and whether its logit is finite.

    A row with NaN, an infinite peak or only -inf is not sound: its weights overflowed.
    """
    kernels = find_kernels(logits.dtype, logits.device)
    if kernels is not None:
        tokens, peaks = kernels.argmax(logits.contiguous())
    else:
        peaks, tokens = logits.max(dim=-1)
    numbers, values = torch.stack((tokens.double(), peaks.double())).tolist()  # one wait for a device beside us
    return [int(number) for number in numbers], [math.isfinite(value) for value in values]
