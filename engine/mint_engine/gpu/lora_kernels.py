"""The programs of `mint_engine.gpu.lora`, in Triton's language. Letters in shapes are explained there."""

import triton
import triton.language as tl


@triton.jit
def _part_of(parts, slot, modules, module):
    """Return where a slot's part of a module begins (-1: absent), its rank, and its scaling."""
    row = parts + (slot * modules + module) * 3
    return tl.load(row), tl.load(row + 1), tl.load(row + 2).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _owners(slots, experts, row, mask, padded: tl.constexpr, stacked: tl.constexpr):
    """Return the slot and the expert of each row of a tile, [padded] int64; -1 is the slot of the bare base."""
    slot_of = tl.load(slots + row, mask=mask, other=-1)
    if stacked:
        return slot_of, tl.load(experts + row, mask=mask, other=0)
    return slot_of, tl.zeros([padded], tl.int64)


@triton.jit
def _turn_of(slots, experts, row, turn, rows, stacked: tl.constexpr):
    """Return a row's slot and expert, and whether a run begins with it: rows of a run are computed together."""
    slot = tl.load(slots + row, mask=row < rows, other=-1)
    begins = (turn == 0) | (slot != tl.load(slots + row - 1, mask=(turn > 0) & (row < rows), other=-1))
    expert = slot * 0
    if stacked:
        expert = tl.load(experts + row, mask=row < rows, other=0)
        begins = begins | (expert != tl.load(experts + row - 1, mask=(turn > 0) & (row < rows), other=-1))
    return slot, expert, begins


# A step's lists lie one after another, so where each begins is aligned in one step and not in the next.
@triton.jit(do_not_specialize=["rows", "module"], do_not_specialize_on_alignment=["slots", "experts"])
def shrink(
    x, x_stride, middle, slots, experts, rows, memory, memory_stride, parts, modules, module, width,
    most: tl.constexpr, stacked: tl.constexpr, tile: tl.constexpr, padded: tl.constexpr, ranks: tl.constexpr,
    inputs: tl.constexpr, piece: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """middle [pieces, T, R] = x A^T of a tile's rows, for some ranks and one piece of the inputs."""
    rank_0, number = tl.program_id(1) * ranks, tl.program_id(2)
    first, at = tl.program_id(0).to(tl.int64) * tile, tl.arange(0, padded)
    row = first + at
    inside = (at < tile) & (row < rows)
    slot_of, expert_of = _owners(slots, experts, row, inside, padded, stacked)
    for turn in range(tile):
        slot, expert, begins = _turn_of(slots, experts, first + turn, turn, rows, stacked)
        if begins & (slot >= 0):
            run = inside & (slot_of == slot) & (expert_of == expert)
            place, rank, _ = _part_of(parts, slot, modules, module)
            if (place >= 0) & (rank_0 < rank):
                r = rank_0 + tl.arange(0, ranks)
                a = memory + slot * memory_stride + tl.multiple_of(place, aligned) + expert * rank * width
                total = tl.zeros([padded, ranks], tl.float32)
                for done in range(number * piece, tl.minimum(number * piece + piece, width), inputs):
                    k = done + tl.arange(0, inputs)
                    own = tl.load(
                        x + row[:, None] * x_stride + k[None], mask=run[:, None] & (k < width)[None], other=0.0
                    )
                    weights = tl.load(
                        a + r[None] * width + k[:, None], mask=(r < rank)[None] & (k < width)[:, None], other=0.0
                    )
                    total = tl.dot(own, weights, total, input_precision="ieee")
                into = middle + (number.to(tl.int64) * rows + row)[:, None] * most + r[None]
                tl.store(into, total, mask=run[:, None] & (r < rank)[None])


@triton.jit(do_not_specialize=["rows", "module", "pieces"], do_not_specialize_on_alignment=["slots", "experts"])
def expand(
    y, y_stride, middle, slots, experts, rows, memory, memory_stride, parts, modules, module, width, height,
    pieces, most: tl.constexpr, count: tl.constexpr, stacked: tl.constexpr, tile: tl.constexpr,
    padded: tl.constexpr, ranks: tl.constexpr, outputs: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """y [T, out] += middle * scaling * B of a tile's rows, for some outputs of a module of `count` experts."""
    column = tl.program_id(1) * outputs + tl.arange(0, outputs)
    first, at = tl.program_id(0).to(tl.int64) * tile, tl.arange(0, padded)
    row = first + at
    inside = (at < tile) & (row < rows)
    slot_of, expert_of = _owners(slots, experts, row, inside, padded, stacked)
    for turn in range(tile):
        slot, expert, begins = _turn_of(slots, experts, first + turn, turn, rows, stacked)
        if begins & (slot >= 0):
            run = inside & (slot_of == slot) & (expert_of == expert)
            place, rank, scaling = _part_of(parts, slot, modules, module)
            if place >= 0:
                b = memory + slot * memory_stride + tl.multiple_of(place, aligned)
                b += count * rank * width + expert * rank * height
                total = tl.zeros([padded, outputs], tl.float32)
                for rank_0 in range(0, rank, ranks):
                    r = rank_0 + tl.arange(0, ranks)
                    inner = tl.zeros([padded, ranks], tl.float32)
                    for number in range(pieces):
                        found = middle + (number * rows + row)[:, None] * most + r[None]
                        inner += tl.load(found, mask=run[:, None] & (r < rank)[None], other=0.0)
                    weights = tl.load(
                        b + r[:, None] * height + column[None],
                        mask=(r < rank)[:, None] & (column < height)[None],
                        other=0.0,
                    )
                    total = tl.dot((inner * scaling).to(weights.dtype), weights, total, input_precision="ieee")
                into = y + row[:, None] * y_stride + column[None]
                mask = run[:, None] & (column < height)[None]
                found = tl.load(into, mask=mask, other=0.0).to(tl.float32)
                tl.store(into, (found + total).to(y.dtype.element_ty), mask=mask)
