"""Shares of a base: everything is held by somebody, query heads with their key/value head, and nothing twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.errors import UnsupportedBase
from mint_engine.parallel.shares import Cut, Dimensions, share_out

SMOLLM = Dimensions(heads=9, kv_heads=3, head_dim=64, inner=1536, vocabulary=49152)


def covers(cuts: list[Cut], size: int) -> bool:
    """Side by side, from the first to the last."""
    return cuts[0].start == 0 and cuts[-1].stop == size and all(a.stop == b.start for a, b in pairwise(cuts))


@given(
    kv_heads=st.integers(1, 16), group=st.integers(1, 8), inner=st.integers(32, 400), vocabulary=st.integers(16, 900),
    count=st.integers(1, 16),
)  # fmt: skip
def test_ranks_hold_all_of_a_base(kv_heads: int, group: int, inner: int, vocabulary: int, count: int) -> None:
    base = Dimensions(kv_heads * group, kv_heads, 16, 2 * inner, vocabulary)
    try:
        shares = share_out(base, count)
    except UnsupportedBase:
        assert kv_heads < count
        return
    assert covers([share.heads for share in shares], base.heads)
    assert covers([share.inner for share in shares], base.inner)
    assert covers([share.vocabulary for share in shares], base.vocabulary)
    assert {head for share in shares for head in range(*share.kv_heads)} == set(range(kv_heads))
    for share in shares:
        assert share.inner.size % 2 == 0
        assert share.heads.size % share.kv_heads.size == 0
        assert {head // group for head in range(*share.heads)} == set(range(*share.kv_heads))


def test_shares_are_as_even_as_heads_allow() -> None:
    first, second = share_out(SMOLLM, 2)
    assert (first.heads, second.heads) == (Cut(0, 6), Cut(6, 9))
    assert (first.inner, second.inner) == (Cut(0, 768), Cut(768, 1536))
    assert (first.vocabulary.size, second.vocabulary.size) == (24576, 24576)


def test_ranks_share_a_key_value_head_where_there_are_too_few() -> None:
    shares = share_out(SMOLLM._replace(heads=8, kv_heads=2), 4)
    assert [share.kv_heads for share in shares] == [Cut(0, 1), Cut(0, 1), Cut(1, 2), Cut(1, 2)]
    assert [share.heads for share in shares] == [Cut(0, 2), Cut(2, 4), Cut(4, 6), Cut(6, 8)]


def test_more_ranks_than_a_base_can_have_are_refused() -> None:
    with pytest.raises(UnsupportedBase, match="tensorParallelSize: is 4, and the base has 9 query heads over 3"):
        share_out(SMOLLM, 4)
