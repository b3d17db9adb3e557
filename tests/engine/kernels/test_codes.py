"""The kernels' products of quantised experts equal those of weights dequantised beforehand, bit for bit."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mint_engine.kernels.expert_structs import Codes, Kind, Stack
from mint_engine.kernels.library import DTYPES, find_kernels
from tests.engine.integers import pack

CPU = torch.device("cpu")
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
# Arbitrary sizes, and sizes that fill registers.
SIZES = st.one_of(st.integers(1, 90), st.sampled_from((32, 64, 96, 160)))
SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Quantised:
    """A linear of all experts as the kernels read it, and its naive reference."""

    codes: Codes
    weight: torch.Tensor  # [E, out, in] float32


def quantised(
    kind: Kind, shape: tuple[int, int, int], block: tuple[int, int], scale: torch.dtype, zero: torch.dtype | None,
    draw: torch.Generator,
) -> Quantised:  # fmt: skip
    (experts, high, wide), whole = shape, kind in (Kind.INT4, Kind.INT8)
    zero = zero if whole else None
    if zero == torch.int32:
        block = 1, block[1]
    grid = experts, -(-high // block[0]), -(-wide // block[1])
    if scale in (torch.uint8, torch.float8_e8m0fnu):
        powers = torch.randint(0, 254, grid, generator=draw, dtype=torch.uint8)
        scales, sizes = powers.view(scale), torch.exp2(powers.double() - 127).float()
    else:
        scales = (torch.randn(grid, generator=draw) / 4).to(scale)
        sizes = scales.float()
    every = torch.rand(experts, generator=draw) if scale == torch.float8_e4m3fn else None
    if every is not None:
        sizes = sizes * every.view(-1, 1, 1)
    bytes_ = torch.randint(0, 256, (experts, high, wide), generator=draw, dtype=torch.uint8)
    if kind == Kind.E4M3:
        bytes_[bytes_ & 127 == 127] = 0  # NaN in e4m3
        codes, numbers = bytes_.view(torch.float8_e4m3fn), bytes_.view(torch.float8_e4m3fn).float()
    elif kind == Kind.INT8:
        codes, numbers = bytes_, bytes_.float() - 128
    else:
        halves = bytes_ & 15
        numbers = E2M1[halves.int()] if kind == Kind.E2M1 else halves.float() - 8
        even = torch.nn.functional.pad(halves, (0, wide % 2))
        codes = even[:, :, ::2] | even[:, :, 1::2] << 4
    zeros: torch.Tensor | None = None
    if zero is not None:
        bits = 4 if kind == Kind.INT4 else 8
        zeros = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), grid, generator=draw, dtype=torch.int8)
        numbers -= spread(zeros.float(), block, shape)
    if zeros is not None and zero == torch.int32:
        zeros = torch.stack([pack(each.T, bits).T for each in zeros]).contiguous()
    weight = numbers * spread(sizes, block, shape)
    return Quantised(Codes(kind, codes.contiguous(), scales, block, every, zeros), weight)


def spread(blocks: torch.Tensor, block: tuple[int, int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Repeat a value per block for each number in the block."""
    return blocks.repeat_interleave(block[0], 1)[:, : shape[1]].repeat_interleave(block[1], 2)[:, :, : shape[2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=4), st.lists(SIZES, min_size=1, max_size=2), SIZES,
    st.tuples(st.integers(1, 70), st.sampled_from((1, 3, 16, 24, 32, 100))), st.sampled_from(SCALES),
    st.sampled_from((None, torch.int8, torch.int32)), st.integers(0, 1 << 20),
)  # fmt: skip
@example([1], [53], 33, (1, 32), torch.uint8, None, 1)  # has scales near the largest float
def test_products_are_those_of_what_is_dequantised_before(
    dtype: torch.dtype, kind: Kind, counts: list[int], highs: list[int], wide: int, block: tuple[int, int],
    scale: torch.dtype, zero: torch.dtype | None, seed: int,
) -> None:  # fmt: skip
    """For blocks of any size, scales and zero points of every type, and one linear or two fused."""
    kernels = find_kernels(dtype, CPU)
    if kernels is None:
        pytest.skip("no compiled kernels here")
    bounds, draw = list(itertools.accumulate(counts, initial=0)), torch.Generator().manual_seed(seed)
    linears = [quantised(kind, (len(counts), high, wide), block, scale, zero, draw) for high in highs]
    weight = torch.cat([each.weight for each in linears], dim=1).to(dtype)
    x = torch.randn(bounds[-1], wide, generator=draw).to(dtype)
    found = kernels.multiply_experts(x, Stack(weight.shape, None, tuple(each.codes for each in linears)), bounds)
    assert torch.equal(
        found.nan_to_num(), kernels.multiply_experts(x, Stack(weight.shape, weight), bounds).nan_to_num()
    )
