"""Converts weights from the formats in which bases are published to the engine's dtype. Pure.

Float8: one e4m3 byte per weight, and a scale for every block of rows and columns (DeepSeek-V3, arXiv 2412.19437,
section 3.3.2); a block may also be a whole tensor or a row. MXFP8: a power of two for every 32 in a row. MXFP4: two
e2m1 numbers per byte, with powers of the same kind (OCP Microscaling Formats v1.0, sections 5 and 6.3). NVFP4: two
e2m1 numbers per byte, an e4m3 scale for every 16 in a row, and one factor for all of these. Integers of 4 or 8 bits,
in 32-bit words: minus a zero point, times a scale, both for a group in a row, for a row, or for all.

Each result is the product of a code's value and a scale in float32, rounded once. If the scale is a number of the
engine's dtype, as every code is, multiplying in that dtype gives the same in half the time.

Letters in shapes: N weights that are dequantised together, O outputs, I inputs, G groups of inputs.
"""

from collections.abc import Iterator

import torch

from mint_contracts.quantisation import MXFP4_GROUP, NVFP4_GROUP, WORD

_BAND = 1 << 19  # numbers at a time: as many as fit a core's own cache
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BYTES = torch.arange(256, dtype=torch.uint8)
_HALVES = torch.stack((_BYTES & 15, _BYTES >> 4), dim=1).int()  # a byte's two codes, the lower half first
# What each byte stands for, [256, numbers in it]: a table lookup takes a quarter of the time of torch's own casts.
_E4M3 = _BYTES.view(torch.float8_e4m3fn).float().unsqueeze(1)
_E2M1 = torch.tensor([*_MAGNITUDES, *(-each for each in _MAGNITUDES)])[_HALVES]
_INTEGERS = {4: _HALVES.float() - 8, 8: _BYTES.float().unsqueeze(1) - 128}  # by number of bits
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integer types by size in bytes


def dequantise_float8(
    weights: torch.Tensor, scales: torch.Tensor, start: tuple[int, int], block: tuple[int, int], out: torch.Tensor
) -> None:
    """Dequantise parts of weights, [N, O, I] in e4m3, that begin at `start`, into `out` [N, O, I].

    `scales` are those of the complete weights, [N, rows of blocks, columns of blocks], as floats or powers of two.
    """
    (first, left), (high, wide) = start, block
    scales = _exact(scales[:, :, left // wide : -(-(left + out.shape[2]) // wide)], out.dtype)
    for some, rows in _bands(out):
        each = scales[some].index_select(1, _blocks(first + rows.start, first + rows.stop, high, out.device))
        numbers = _looked_up(weights[some, rows], _E4M3, each.dtype)
        _scale(numbers, each, left, wide, None, out[some, rows])


def dequantise_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Dequantise blocks [N, O, I/32, 16] with scales [N, O, I/32], all bytes, into `out` [N, O, I] of any strides."""
    scales = _exact(scales, out.dtype)
    for some, rows in _bands(out):
        numbers = _looked_up(blocks[some, rows].flatten(2), _E2M1, scales.dtype)
        _scale(numbers, scales[some, rows], 0, MXFP4_GROUP, None, numbers)
        out[some, rows] = numbers


def dequantise_nvfp4(bytes_: torch.Tensor, scales: torch.Tensor, left: int, out: torch.Tensor) -> None:
    """Dequantise rows of weights from their `left`-th column on into `out` [N, O, I].

    `bytes_` [N, O, B] and `scales` [N, O, G], in float32, begin with those of that column.
    """
    for some, rows in _bands(out):
        numbers = _looked_up(bytes_[some, rows], _E2M1, scales.dtype)[:, :, left % 2 :][:, :, : out.shape[2]]
        _scale(numbers, scales[some, rows], left, NVFP4_GROUP, None, out[some, rows])


def dequantise_integers(
    words: torch.Tensor,
    bits: int,
    left: int,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor | int,
    out: torch.Tensor,
) -> None:
    """Dequantise rows of weights from their `left`-th column on into `out` [N, O, I].

    `words` [N, O, W] begin with the one that holds that column; `scales` and `zeros` are [N, O, G]. `groups` is the
    group of each column [N, I], or the number of columns in a group: scales and zeros then begin with that column's.
    """
    first, scales = left % (WORD // bits), _exact(scales, out.dtype)
    for some, rows in _bands(out):
        numbers = unpack_words(words[some, rows], bits, scales.dtype)[:, :, first : first + out.shape[2]]
        less = zeros[some, rows].to(scales.dtype) if zeros is not None else None
        if isinstance(groups, int):
            _scale(numbers, scales[some, rows], left, groups, less, out[some, rows])
        else:
            _scale_ordered(numbers, scales[some, rows], groups[some], less, out[some, rows])


def unpack_words(words: torch.Tensor, bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Unpack integers from 32-bit words, the first in the lowest bits: [*, W] to [*, W x 32 / bits].

    They are stored as offsets from the least value (compressed-tensors, compressors/pack_quantized).
    """
    return _looked_up(words, _INTEGERS[bits], dtype)


def _exact(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales ready to multiply: in that dtype if it represents them exactly, in float32 otherwise.

    Bytes are powers of two as in the Microscaling Formats (e8m0), 255 being NaN.
    """
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        powers = scales.view(torch.float8_e8m0fnu).float()
        return powers.bfloat16() if dtype == torch.bfloat16 else powers  # which has the same range
    return scales if scales.dtype == dtype else scales.float()


def _scale(
    numbers: torch.Tensor, scales: torch.Tensor, left: int, wide: int, zeros: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Write numbers [N, O, I], from the `left`-th column on, minus zero points, times scales of `wide` columns each.

    `numbers` change in place. `scales` and `zeros`, [N, O, G] or [N, 1, G], begin with those of that column.
    """
    if left % wide or numbers.shape[2] % wide:
        columns = torch.arange(left, left + numbers.shape[2], device=numbers.device) // wide - left // wide
        _scale_ordered(numbers, scales, columns.unsqueeze(0), zeros, out)
        return
    by_groups = (*numbers.shape[:2], -1, wide)
    groups = numbers.view(by_groups)  # broadcasting takes less time than copying a scale for each number
    if zeros is not None:
        groups.sub_(zeros.unsqueeze(3))
    torch.mul(groups, scales.unsqueeze(3), out=out.view(by_groups))


def _scale_ordered(
    numbers: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor, zeros: torch.Tensor | None, out: torch.Tensor
) -> None:
    """The same, with `groups`, [N, I] or [1, I], giving the group of each column."""
    many, outputs, inputs = numbers.shape
    columns = groups.unsqueeze(1).expand(many, outputs, inputs)
    if zeros is not None:
        numbers.sub_(zeros.expand(many, outputs, -1).gather(2, columns))
    torch.mul(numbers, scales.expand(many, outputs, -1).gather(2, columns), out=out)


def _looked_up(codes: torch.Tensor, table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Look up codes [*, B] of any type, byte by byte, in a table [256, n] -> [*, B x bytes of a code x n]."""
    numbers = table.to(dtype)
    whole = numbers.view(_WORDS[numbers.shape[1] * numbers.itemsize]).view(-1)  # as one number, which is found faster
    bytes_ = codes.contiguous().view(torch.uint8).reshape(-1)
    found = whole.to(codes.device, non_blocking=True).index_select(0, bytes_.int())
    return found.view(dtype).view(*codes.shape[:-1], -1)


def _bands(out: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of N and O to take at a time; one for all on devices whose calls cost more than memory."""
    many, outputs, inputs = out.shape
    rows = max(1, _BAND // inputs)
    if out.device.type != "cpu":
        yield slice(0, many), slice(0, outputs)
    elif rows >= outputs:
        for first in range(0, many, rows // outputs):
            yield slice(first, first + rows // outputs), slice(0, outputs)
    else:
        for at in range(many):
            for first in range(0, outputs, rows):
                yield slice(at, at + 1), slice(first, min(first + rows, outputs))


def _blocks(start: int, stop: int, size: int, device: torch.device) -> torch.Tensor:
    """The block of each row or column; a single number if all are in the same block."""
    if start // size == (stop - 1) // size:
        return torch.full((1,), start // size, device=device)
    return torch.arange(start, stop, device=device) // size
