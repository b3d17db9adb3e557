"""The programs of `mint_engine.gpu.experts`, in Triton's language. Letters in shapes are explained there."""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq
from triton.runtime.jit import constexpr_function

# As in `mint_engine.kernels.expert_structs`.
_E4M3, _INT8, _E2M1, _INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
_BFLOAT16, _FLOAT16, _POWER, _SCALED = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
_NO_ZEROS, _ZERO_BYTES = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def _rows_of(ends, rows, block, experts: tl.constexpr, padded_experts: tl.constexpr, tile: tl.constexpr):
    """Return the expert and rows of the `block`-th tile: the first, and where the expert's end; none if not after it.

    With few rows each has a tile, empty unless the row is the first of one. Otherwise an expert's tiles begin at its
    number plus how many whole tiles the rows before its own fill: so no two experts have the same.
    """
    e, few = tl.arange(0, padded_experts), rows <= experts
    begins = tl.load(ends + e - 1, mask=(e > 0) & (e < experts), other=0)
    expert = tl.sum(((e < experts) & (tl.where(few, begins, begins // tile + e) <= block)).to(tl.int32)) - 1
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    first = tl.where(few, block, begin + (block - begin // tile - expert) * tile)
    return expert.to(tl.int64), first, tl.where((first - begin) % tile == 0, end, 0)


@constexpr_function
def _is_exact(dtype, kind, scale_kind, zero_kind):
    """Whether `dtype` has all integers less zero points, and all scales: products in it are rounded once, too."""
    alike = (tl.bfloat16, _BFLOAT16.value), (tl.float16, _FLOAT16.value)
    return kind == _INT4.value and zero_kind != _ZERO_BYTES.value and (dtype, scale_kind) in alike


@triton.jit
def _e4m3(byte):
    """Return e4m3 bytes (uint8) as float32; by their bits on GPUs before Ada, which do not know the type."""
    if cuda_capability_geq(8, 9):
        return byte.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    bits = byte.to(tl.uint16)
    bits = ((bits << 8) & 0x8000) | ((bits << 7) & 0x3F80)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def _factor_of(expert, factors, kind: tl.constexpr, scale_kind: tl.constexpr):
    """Return what all of an expert's scales are multiplied by."""
    factor = 1.0
    if kind == _E2M1:
        factor = 16384.0  # a half's exponents begin lower than those of codes
    if scale_kind == _SCALED:
        factor = factor * tl.load(factors + expert)
    return factor


@triton.jit
def _scales_of(
    scales, zeros, factor, n, group, height, columns,
    kind: tl.constexpr, scale_kind: tl.constexpr, zero_kind: tl.constexpr, high: tl.constexpr,
):  # fmt: skip
    """Return the scales [O, G] of outputs `n` [O] and groups `group` [G], and what integers there are less by."""
    mask = (n < height)[:, None] & (group < columns)[None]
    at = (n // high)[:, None] * columns + group[None]
    scale = tl.load(scales + at, mask=mask, other=0)
    if scale_kind == _POWER:
        bits = scale.to(tl.int32)
        scale = tl.where(bits == 0, 0x400000, bits << 23).to(tl.float32, bitcast=True)
    elif scale_kind == _SCALED:
        scale = _e4m3(scale)
    scale = scale.to(tl.float32) * factor
    half: tl.constexpr = 128 if kind == _INT8 else 8
    if zero_kind == _NO_ZEROS:
        less = tl.full(scale.shape, half, tl.float32)
    elif zero_kind == _ZERO_BYTES:
        less = tl.load(zeros + at, mask=mask, other=0).to(tl.float32) + half
    else:  # codes of several outputs in a word
        each: tl.constexpr = 4 if kind == _INT8 else 8
        word = tl.load(zeros + (n // each)[:, None] * columns + group[None], mask=mask, other=0)
        less = ((word >> (n % each * (32 // each))[:, None]) & (2 * half - 1)).to(tl.float32)
    return scale, less


@triton.jit
def _weights_of(
    byte, part: tl.constexpr, parts: tl.constexpr, scale, less, kind: tl.constexpr, dtype: tl.constexpr,
    exact: tl.constexpr,
):  # fmt: skip
    """Return the weights [O, B] in `dtype` of the `part`-th code of each byte [O, B], by scales [O, G].

    An integer becomes a float as the last digits of a power of two. Floats of 16 bits are multiplied two at once, so
    these are used where they are `exact`.
    """
    if kind == _E4M3:
        number = _e4m3(byte)
    else:
        code = byte.to(tl.int32)
        if parts == 2:
            code = (code >> (4 * part)) & 15
        if kind == _E2M1:
            bits = ((code << 12) & 0x8000) | ((code << 9) & 0x0E00)
            number = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        elif exact:
            power: tl.constexpr = 128 if dtype == tl.bfloat16 else 1024
            bits = code | (0x4300 if dtype == tl.bfloat16 else 0x6400)
            number, less = bits.to(tl.uint16).to(dtype, bitcast=True), (less + power).to(dtype)
            scale = scale.to(dtype)
        else:
            number, less = (code | 0x4B000000).to(tl.float32, bitcast=True), less + 8388608.0
    groups: tl.constexpr = scale.shape[1]
    if groups > 1:
        number = tl.reshape(number, (byte.shape[0], groups, byte.shape[1] // groups))
        scale, less = scale[:, :, None], less[:, :, None]
    if kind == _INT8 or kind == _INT4:  # noqa: SIM109 - the language has no `in`
        number = number - less
    return tl.reshape(number * scale, byte.shape).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x, y, y_stride, ends, rows, codes, pitch, scales, blocks, columns, factors, zeros, zero_words, width, height,
    experts: tl.constexpr, padded_experts: tl.constexpr, kind: tl.constexpr, scale_kind: tl.constexpr,
    zero_kind: tl.constexpr, high: tl.constexpr, group: tl.constexpr, parts: tl.constexpr, tile: tl.constexpr,
    outputs: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """y [P, O] = x W^T of a tile of an expert's rows, for some outputs; x is [P, parts, bytes]."""
    expert, first, end = _rows_of(ends, rows, tl.program_id(1), experts, padded_experts, tile)
    if first < end:
        n, m, b = tl.program_id(0) * outputs + tl.arange(0, outputs), first + tl.arange(0, tile), tl.arange(0, step)
        codes += expert * height * pitch
        scales += expert * blocks * columns
        zeros += expert * zero_words
        exact: tl.constexpr = _is_exact(x.dtype.element_ty, kind, scale_kind, zero_kind)
        factor = _factor_of(expert, factors, kind, scale_kind)
        g = tl.arange(0, step // group if group < step else 1)
        own, row = x + m.to(tl.int64)[None] * (width * parts), n.to(tl.int64)[:, None] * pitch
        total = tl.zeros([outputs, tile], tl.float32)
        scale, less = _scales_of(scales, zeros, factor, n, g, height, columns, kind, scale_kind, zero_kind, high)
        for done in range(0, width, step):
            at = done + b
            byte = tl.load(codes + row + at[None], mask=(n < height)[:, None] & (at < width)[None], other=0)
            next_scale, next_less = _scales_of(
                scales, zeros, factor, n, (done + step) // group + g, height, columns, kind, scale_kind, zero_kind,
                high,
            )  # fmt: skip
            for part in tl.static_range(parts):
                weights = _weights_of(byte, part, parts, scale, less, kind, x.dtype.element_ty, exact)
                given = tl.load(
                    own + part * width + at[:, None], mask=(at < width)[:, None] & (m < end)[None], other=0.0
                )
                total = tl.dot(weights, given, total, input_precision="ieee")
            scale, less = next_scale, next_less
        into = y + m.to(tl.int64)[None] * y_stride + n[:, None]
        tl.store(into, total.to(y.dtype.element_ty), mask=(n < height)[:, None] & (m < end)[None])


@triton.jit(do_not_specialize=["rows"])
def multiply_back(
    dy, dy_stride, dx, ends, rows, codes, pitch, scales, blocks, columns, factors, zeros, zero_words, width, height,
    experts: tl.constexpr, padded_experts: tl.constexpr, kind: tl.constexpr, scale_kind: tl.constexpr,
    zero_kind: tl.constexpr, high: tl.constexpr, group: tl.constexpr, parts: tl.constexpr, tile: tl.constexpr,
    outputs: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """dx [P, I] = dy W of a tile of an expert's rows, for the inputs of some of each output's bytes."""
    expert, first, end = _rows_of(ends, rows, tl.program_id(1), experts, padded_experts, tile)
    if first < end:
        start = tl.program_id(0) * outputs
        b, m, n = start + tl.arange(0, outputs), first + tl.arange(0, tile), tl.arange(0, step)
        codes += expert * height * pitch
        scales += expert * blocks * columns
        zeros += expert * zero_words
        exact: tl.constexpr = _is_exact(dy.dtype.element_ty, kind, scale_kind, zero_kind)
        factor = _factor_of(expert, factors, kind, scale_kind)
        g = start // group + tl.arange(0, outputs // group if group < outputs else 1)
        own = dy + m.to(tl.int64)[None] * dy_stride
        total, second = tl.zeros([outputs, tile], tl.float32), tl.zeros([outputs, tile], tl.float32)
        scale, less = _scales_of(scales, zeros, factor, n, g, height, columns, kind, scale_kind, zero_kind, high)
        for done in range(0, height, step):
            at = done + n
            byte = tl.load(
                codes + at.to(tl.int64)[:, None] * pitch + b[None],
                mask=(at < height)[:, None] & (b < width)[None],
                other=0,
            )
            given = tl.load(own + at[:, None], mask=(at < height)[:, None] & (m < end)[None], other=0.0)
            next_scale, next_less = _scales_of(
                scales, zeros, factor, at + step, g, height, columns, kind, scale_kind, zero_kind, high
            )  # fmt: skip
            weights = _weights_of(byte, 0, parts, scale, less, kind, dy.dtype.element_ty, exact)
            total = tl.dot(tl.trans(weights), given, total, input_precision="ieee")
            if parts == 2:
                weights = _weights_of(byte, 1, parts, scale, less, kind, dy.dtype.element_ty, exact)
                second = tl.dot(tl.trans(weights), given, second, input_precision="ieee")
            scale, less = next_scale, next_less
        into = dx + m.to(tl.int64)[None] * (width * parts) + b[:, None] * parts
        mask = (b < width)[:, None] & (m < end)[None]
        tl.store(into, total.to(dx.dtype.element_ty), mask=mask)
        if parts == 2:
            tl.store(into + 1, second.to(dx.dtype.element_ty), mask=mask)
