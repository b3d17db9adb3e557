"""Weights out of the formats in which bases are published, in the engine's dtype. Pure.

Float8: an e4m3 byte a weight, and a scale for every block of so many rows and columns (DeepSeek-V3, arXiv 2412.19437,
section 3.3.2); a whole tensor is one block, or a row is. MXFP8: a power of two for every 32 in a row. MXFP4: two e2m1
numbers a byte, and powers alike (OCP Microscaling Formats v1.0, sections 5 and 6.3). NVFP4: two e2m1 numbers a byte,
an e4m3 scale for every 16 in a row, and a number by which all of these are to be multiplied. Whole numbers of 4 or 8
bits, in words of 32: less a zero point, times a scale, both of so many in a row, of a row or of all.
"""

import torch

from mint_contracts.quantisation import MXFP4_GROUP, NVFP4_GROUP, WORD

_BAND = 1 << 19  # numbers in float32 at a time: as many as a core's own cache holds
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# What each code is: a look at a table takes a quarter of the time that torch's own casts take, by one core.
_E2M1 = torch.tensor([*_MAGNITUDES, *(-each for each in _MAGNITUDES)])
_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def dequantise_float8(
    weight: torch.Tensor, scales: torch.Tensor, start: tuple[int, int], block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """A part of a weight, [O, I] in e4m3, that begins at `start` of the whole: [O, I], rounded once.

    `scales` are the whole weight's, [rows of blocks, columns of blocks] in float32. Of the weight no more than a band
    of rows is ever there in float32.
    """
    (first, left), (high, wide) = start, block
    device, rows = weight.device, _band(weight, weight.shape[1])
    scales = scales[:, left // wide : -(-(left + weight.shape[1]) // wide)]
    out = torch.empty(weight.shape, dtype=dtype, device=device)
    for begin in range(first - first % rows, first + weight.shape[0], rows):
        top, bottom = max(begin, first), min(begin + rows, first + weight.shape[0])
        each = scales.index_select(0, _blocks(top, bottom, high, device))
        band = slice(top - first, bottom - first)
        out[band] = _scaled(_looked_up(weight[band].view(torch.uint8), _E4M3), each, left, wide)
    return out


def _scaled(
    numbers: torch.Tensor, scales: torch.Tensor, left: int, wide: int, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """Numbers [O, I] from the `left`-th column on, less zero points and times scales of so many columns each.

    They change in place. `scales` and `zeros`, [O, G] or [1, G], are from those of that column on.
    """
    if left % wide == 0 and numbers.shape[1] % wide == 0:  # a broadcast takes less than a copy of a scale a number
        groups = numbers.view(numbers.shape[0], -1, wide)
        if zeros is not None:
            groups.sub_(zeros.unsqueeze(2))
        groups.mul_(scales.unsqueeze(2))
        return numbers
    columns = torch.arange(left, left + numbers.shape[1], device=numbers.device) // wide - left // wide
    return _ordered(numbers, scales, columns, zeros)


def _ordered(
    numbers: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """The same where `groups` [I] says which of the scales each column has."""
    if zeros is not None:
        numbers.sub_(zeros.index_select(1, groups))
    return numbers.mul_(scales.index_select(1, groups))


def _looked_up(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What codes of any shape are, by a table of all."""
    return table.to(codes.device).index_select(0, codes.reshape(-1).int()).view(codes.shape)


def _halves(bytes_: torch.Tensor) -> torch.Tensor:
    """Bytes [*, B] as the two codes of each, the lower half first: [*, 2 B]."""
    return torch.stack((bytes_ & 15, bytes_ >> 4), dim=-1).flatten(-2)


def _band(of: torch.Tensor, columns: int) -> int:
    """Rows at a time: all on a device with memory of its own, where a call costs more than they do."""
    return max(1, _BAND // columns if of.device.type == "cpu" else of.shape[0])


def _blocks(start: int, stop: int, size: int, device: torch.device) -> torch.Tensor:
    """Of which block each row or column is; one number where all are of the same."""
    if start // size == (stop - 1) // size:
        return torch.full((1,), start // size, device=device)
    return torch.arange(start, stop, device=device) // size


def dequantise_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One expert's matrix, [O, I/32, 16] and [O, I/32] in bytes: [I, O], as transformers multiplies by it."""
    outputs, groups, _ = blocks.shape
    out = torch.empty((outputs, groups * MXFP4_GROUP), dtype=dtype, device=blocks.device)
    rows, powers = _band(blocks, groups * MXFP4_GROUP), powers_of_two(scales).unsqueeze(2)
    for begin in range(0, outputs, rows):
        band = slice(begin, begin + rows)
        out[band] = (_looked_up(_halves(blocks[band]), _E2M1) * powers[band]).flatten(1)
    return out.T


def dequantise_nvfp4(
    bytes_: torch.Tensor, scales: torch.Tensor, left: int, wide: int, dtype: torch.dtype
) -> torch.Tensor:
    """Some rows of a weight from its `left`-th column on: [O, wide], multiplied in float32 and then rounded.

    `bytes_` [O, B] and `scales` [O, G], in float32, are from those of that column on.
    """
    out = torch.empty((bytes_.shape[0], wide), dtype=dtype, device=bytes_.device)
    rows = _band(bytes_, wide)
    for begin in range(0, bytes_.shape[0], rows):
        band = slice(begin, begin + rows)
        numbers = _looked_up(_halves(bytes_[band])[:, left % 2 : left % 2 + wide], _E2M1)
        out[band] = _scaled(numbers, scales[band], left, NVFP4_GROUP)
    return out


def powers_of_two(scales: torch.Tensor) -> torch.Tensor:
    """Of bytes as the Microscaling Formats have them for scales (e8m0): float32, NaN for 255."""
    return scales.view(torch.float8_e8m0fnu).float()


def dequantise_integers(
    words: torch.Tensor,
    bits: int,
    columns: range,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor | int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Some rows and `columns` of a weight: [O, I], multiplied in float32 and then rounded.

    `words` [O, W] begin with the one that holds the first column; `scales` and `zeros` are [O, G]; `groups` [I] says
    which of these each column has, or how many columns have one: then they are from those of the first column on.
    """
    first, rows = columns.start % (WORD // bits), _band(words, len(columns))
    out = torch.empty((words.shape[0], len(columns)), dtype=dtype, device=words.device)
    for begin in range(0, words.shape[0], rows):
        band = slice(begin, begin + rows)
        numbers = unpack_words(words[band], bits)[:, first : first + len(columns)].contiguous()
        each, less = scales[band].float(), zeros[band].float() if zeros is not None else None
        if isinstance(groups, int):
            out[band] = _scaled(numbers, each, columns.start, groups, less)
        else:
            out[band] = _ordered(numbers, each, groups, less)
    return out


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers, in words of 32 bits with the first in the lowest: [O, W] to [O, W x 32 / bits], in float32.

    They are stored as what they exceed the least by (compressed-tensors, compressors/pack_quantized).
    """
    bytes_ = words.view(torch.uint8)
    return (_halves(bytes_) if bits == 4 else bytes_).float().sub_(1 << (bits - 1))
