"""Weights out of the formats in which bases are published, in the engine's dtype. Pure.

Float8: an e4m3 byte a weight, and a scale for every block of so many rows and columns (DeepSeek-V3, arXiv 2412.19437,
section 3.3.2); a whole tensor is one block, or a row is. MXFP8: a power of two for every 32 in a row. MXFP4: two e2m1
numbers a byte, and powers alike (OCP Microscaling Formats v1.0, sections 5 and 6.3). NVFP4: two e2m1 numbers a byte,
an e4m3 scale for every 16 in a row, and a number by which all of these are to be multiplied. Whole numbers of 4 or 8
bits, in words of 32: less a zero point, times a scale, both of so many in a row, of a row or of all.
"""

import torch

from mint_contracts.quantisation import MXFP4_GROUP, NVFP4_GROUP, WORD

_BAND = 128  # rows
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = (*_MAGNITUDES, *(-each for each in _MAGNITUDES))
# [256, 2]: what a byte holds, its lower half first.
_PAIRS = torch.tensor([[_E2M1[byte & 15], _E2M1[byte >> 4]] for byte in range(256)])


def dequantise_float8(
    weight: torch.Tensor, scales: torch.Tensor, start: tuple[int, int], block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """A part of a weight, [O, I] in e4m3, that begins at `start` of the whole: [O, I], rounded once.

    `scales` are the whole weight's, [rows of blocks, columns of blocks] in float32. Of the weight no more than a band
    of rows is ever there in float32.
    """
    (first, left), (high, wide) = start, block
    device, rows = weight.device, _band(weight)
    columns = _blocks(left, left + weight.shape[1], wide, device)
    out = torch.empty(weight.shape, dtype=dtype, device=device)
    for begin in range(first - first % rows, first + weight.shape[0], rows):
        top, bottom = max(begin, first), min(begin + rows, first + weight.shape[0])
        each = scales.index_select(0, _blocks(top, bottom, high, device)).index_select(1, columns)
        band = slice(top - first, bottom - first)
        out[band] = weight[band].float() * each
    return out


def _band(of: torch.Tensor) -> int:
    """Rows in float32 at a time: all on a device with memory of its own, where a call costs more than they."""
    return _BAND if of.device.type == "cpu" else max(1, of.shape[0])


def _blocks(start: int, stop: int, size: int, device: torch.device) -> torch.Tensor:
    """Of which block each row or column is; one number where all are of the same."""
    if start // size == (stop - 1) // size:
        return torch.full((1,), start // size, device=device)
    return torch.arange(start, stop, device=device) // size


def dequantise_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One expert's matrix, [O, I/32, 16] and [O, I/32] in bytes: [I, O], as transformers multiplies by it."""
    outputs, groups, _ = blocks.shape
    pairs = _PAIRS.to(blocks.device).index_select(0, blocks.reshape(-1).int()).view(outputs, groups, MXFP4_GROUP)
    powers = powers_of_two(scales)
    return (pairs * powers.unsqueeze(2)).view(outputs, -1).T.to(dtype)


def dequantise_nvfp4(
    bytes_: torch.Tensor, scales: torch.Tensor, left: int, wide: int, dtype: torch.dtype
) -> torch.Tensor:
    """Some rows of a weight from its `left`-th column on: [O, wide], multiplied in float32 and then rounded.

    `bytes_` [O, B] and `scales` [O, G], in float32, are from those of that column on.
    """
    device, rows, known = bytes_.device, _band(bytes_), _PAIRS.to(bytes_.device)
    columns = torch.arange(left, left + wide, device=device) // NVFP4_GROUP - left // NVFP4_GROUP
    out = torch.empty((bytes_.shape[0], wide), dtype=dtype, device=device)
    for begin in range(0, bytes_.shape[0], rows):
        band = slice(begin, begin + rows)
        pairs = known[bytes_[band].long()].flatten(1)[:, left % 2 : left % 2 + wide]
        out[band] = pairs * scales[band].index_select(1, columns)
    return out


def powers_of_two(scales: torch.Tensor) -> torch.Tensor:
    """Of bytes as the Microscaling Formats have them for scales (e8m0): float32, NaN for 255."""
    return scales.view(torch.float8_e8m0fnu).float()


def dequantise_integers(
    words: torch.Tensor,
    bits: int,
    left: int,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Some rows of a weight from its `left`-th column on: [O, I], multiplied in float32 and then rounded.

    `words` [O, W] begin with the one that holds that column; `scales` and `zeros` are [O, G], `groups` [I] says which
    of these each column has.
    """
    first, rows = left % (WORD // bits), _band(words)
    out = torch.empty((words.shape[0], len(groups)), dtype=dtype, device=words.device)
    for begin in range(0, words.shape[0], rows):
        band = slice(begin, begin + rows)
        numbers = unpack_words(words[band], bits)[:, first : first + len(groups)]
        if zeros is not None:
            numbers = numbers - zeros[band].float().index_select(1, groups)
        out[band] = numbers * scales[band].float().index_select(1, groups)
    return out


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers, in words of 32 bits with the first in the lowest: [O, W] to [O, W x 32 / bits], in float32.

    They are stored as what they exceed the least by (compressed-tensors, compressors/pack_quantized).
    """
    bytes_ = words.view(torch.uint8)
    if bits == 4:
        bytes_ = torch.stack((bytes_ & 15, bytes_ >> 4), dim=2).flatten(1)
    return bytes_.float() - (1 << (bits - 1))
