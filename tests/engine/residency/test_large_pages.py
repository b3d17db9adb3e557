"""Zeros in large pages: allocations lie side by side and never overlap."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_engine.residency.large_pages import LargePages

LARGE = 2 << 20
LINE = 64
MOST = 64 << 20  # the most that is requested from the system at a time


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.sampled_from([torch.bfloat16, torch.float32]))
def test_each_tensor_is_its_own_and_zero(counts: list[int], dtype: torch.dtype) -> None:
    memory = LargePages()
    given_out = [memory.zeros(count, dtype) for count in counts]
    for number, (tensor, count) in enumerate(zip(given_out, counts, strict=True)):
        assert tensor.shape == (count,)
        assert tensor.dtype == dtype
        assert tensor.data_ptr() % LINE == 0
        assert not tensor.any(), "another's numbers"
        tensor.fill_(number + 1)
    for number, tensor in enumerate(given_out):
        assert (tensor == number + 1).all()


def test_small_ones_share_a_large_page() -> None:
    memory = LargePages()
    first, second = memory.zeros(1000, torch.bfloat16), memory.zeros(1000, torch.bfloat16)
    assert first.data_ptr() % LARGE == 0
    assert second.data_ptr() // LARGE == first.data_ptr() // LARGE


def test_a_tensor_larger_than_one_allocation_is_complete() -> None:
    memory = LargePages()
    small, large = memory.zeros(10, torch.float32), memory.zeros(MOST // 2, torch.float32)
    assert large.data_ptr() % LARGE == 0
    assert len(large) == MOST // 2
    large[-1] = 1.0
    assert not small.any()
