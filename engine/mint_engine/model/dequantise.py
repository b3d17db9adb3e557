"""Weights out of the formats in which bases are published, in the engine's dtype. Pure.

Block float8: an e4m3 byte a weight, and a scale for every block of so many rows and columns (DeepSeek-V3,
arXiv 2412.19437, section 3.3.2). MXFP4: two e2m1 numbers a byte, and a power of two for every 32 of them (OCP
Microscaling Formats v1.0, sections 5.3 and 6.3).
"""

import torch

from mint_contracts.quantisation import MXFP4_GROUP

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = (*_MAGNITUDES, *(-each for each in _MAGNITUDES))
# [256, 2]: what a byte holds, its lower half first.
_PAIRS = torch.tensor([[_E2M1[byte & 15], _E2M1[byte >> 4]] for byte in range(256)])


def dequantise_float8(
    weight: torch.Tensor, scales: torch.Tensor, start: tuple[int, int], block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """A part of a weight, [O, I] in e4m3, that begins at `start` of the whole: [O, I], rounded once.

    `scales` are the whole weight's, [rows of blocks, columns of blocks]. A row of blocks at a time, so that no more
    than that is ever there in float32.
    """
    (first, left), (high, wide) = start, block
    columns = torch.arange(left, left + weight.shape[1]) // wide
    out = torch.empty(weight.shape, dtype=dtype)
    below, scales = 0, scales.float()
    while below < weight.shape[0]:
        row = (first + below) // high
        begin, below = below, min((row + 1) * high - first, weight.shape[0])
        out[begin:below] = weight[begin:below].float() * scales[row].index_select(0, columns)
    return out


def dequantise_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One expert's matrix, [O, I/32, 16] and [O, I/32] in bytes: [I, O], as transformers multiplies by it."""
    outputs, groups, _ = blocks.shape
    pairs = _PAIRS.index_select(0, blocks.reshape(-1).int()).view(outputs, groups, MXFP4_GROUP)
    powers = scales.view(torch.float8_e8m0fnu).float()
    return (pairs * powers.unsqueeze(2)).view(outputs, -1).T.to(dtype)
