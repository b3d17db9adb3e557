"""Shares of a base: every part is held by some rank, query heads with their key/value head, and nothing twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.cuts import Cut
from mint_contracts.errors import UnsupportedBase
from mint_engine.adapters.adapter import Module
from mint_engine.parallel.shares import Dimensions, ModuleCut, Runs, share_out

SMOLLM = Dimensions(heads=9, kv_heads=3, vocabulary=49152)
LATENT = Dimensions(heads=8, kv_heads=8, vocabulary=300, experts=8)


def covers(cuts: list[Cut], size: int) -> bool:
    """Whether the cuts lie side by side, from the first element to the last."""
    return cuts[0].start == 0 and cuts[-1].stop == size and all(a.stop == b.start for a, b in pairwise(cuts))


@given(
    kv_heads=st.integers(1, 16), group=st.integers(1, 8), inner=st.integers(32, 400), vocabulary=st.integers(16, 900),
    experts=st.integers(16, 99), count=st.integers(1, 16),
)  # fmt: skip
def test_ranks_hold_all_of_a_base(
    kv_heads: int, group: int, inner: int, vocabulary: int, experts: int, count: int
) -> None:
    base = Dimensions(kv_heads * group, kv_heads, vocabulary, experts)
    try:
        shares = share_out(base, count)
    except UnsupportedBase:
        assert kv_heads < count
        return
    up = [share.of(Module("mlp.up_proj", 64, 2 * inner)) for share in shares]
    down = [share.of(Module("mlp.down_proj", 2 * inner, 64)) for share in shares]
    assert [each.outputs for each in up] == [each.inputs for each in down]
    assert covers([each.outputs for each in up if isinstance(each.outputs, Cut)], 2 * inner)
    assert covers([share.heads for share in shares], base.heads)
    assert covers([share.vocabulary for share in shares], base.vocabulary)
    assert covers([share.experts for share in shares], base.experts)
    assert {head for share in shares for head in range(*share.kv_heads)} == set(range(kv_heads))
    for share, mlp in zip(shares, up, strict=True):
        assert mlp.outputs
        assert mlp.outputs.size % 2 == 0
        assert share.experts.size
        assert share.heads.size % share.kv_heads.size == 0
        assert {head // group for head in range(*share.heads)} == set(range(*share.kv_heads))


def test_shares_are_as_even_as_heads_allow() -> None:
    first, second = share_out(SMOLLM, 2)
    assert (first.heads, second.heads) == (Cut(0, 6), Cut(6, 9))
    gate = Module("mlp.gate_proj", 576, 1536)
    assert (first.of(gate), second.of(gate)) == (ModuleCut(outputs=Cut(0, 768)), ModuleCut(outputs=Cut(768, 1536)))
    assert (first.vocabulary.size, second.vocabulary.size) == (24576, 24576)


def test_ranks_share_a_key_value_head_where_there_are_too_few() -> None:
    shares = share_out(SMOLLM._replace(heads=8, kv_heads=2), 4)
    assert [share.kv_heads for share in shares] == [Cut(0, 1), Cut(0, 1), Cut(1, 2), Cut(1, 2)]
    assert [share.heads for share in shares] == [Cut(0, 2), Cut(2, 4), Cut(4, 6), Cut(6, 8)]


def test_each_rank_knows_the_most_query_heads_that_any_has_over_one() -> None:
    assert [share.most_queries for share in share_out(SMOLLM._replace(heads=129, kv_heads=1), 2)] == [65, 65]
    assert [share.most_queries for share in share_out(SMOLLM, 2)] == [3, 3]


@pytest.mark.parametrize(
    ("module", "cut"),
    [
        (Module("self_attn.q_a_proj", 64, 24), ModuleCut()),
        (Module("self_attn.q_b_proj", 24, 8 * 20), ModuleCut(outputs=Cut(80, 160))),
        (Module("self_attn.kv_a_proj_with_mqa", 64, 28), ModuleCut()),
        (Module("self_attn.kv_b_proj", 20, 8 * 22), ModuleCut(outputs=Cut(88, 176))),
        (
            Module("self_attn.qkv_proj", 64, 24 * 8),
            ModuleCut(outputs=Runs((Cut(32, 64), Cut(96, 128), Cut(160, 192)))),
        ),
        (Module("mlp.gate_up_proj", 64, 128), ModuleCut(outputs=Runs((Cut(32, 64), Cut(96, 128))))),
        (Module("self_attn.o_proj", 8 * 10, 64), ModuleCut(inputs=Cut(40, 80))),
        (Module("self_attn.indexer.wq_b", 24, 384), ModuleCut()),
        (Module("mlp.shared_experts.down_proj", 64, 64), ModuleCut(inputs=Cut(32, 64))),
        (Module("mlp.experts.down_proj", 40, 64, 8), ModuleCut(experts=Cut(4, 8))),
    ],
)
def test_latents_are_held_by_all_and_experts_whole(module: Module, cut: ModuleCut) -> None:
    assert share_out(LATENT, 2)[1].of(module) == cut


@pytest.mark.parametrize(
    ("base", "count", "why"),
    [
        (SMOLLM, 4, "9 query heads over 3 key/value heads"),
        (LATENT._replace(experts=3), 4, "3 experts"),
        (LATENT._replace(vocabulary=7), 8, "7 tokens"),
    ],
)
def test_more_ranks_than_a_base_can_have_are_refused(base: Dimensions, count: int, why: str) -> None:
    with pytest.raises(
        UnsupportedBase, match=f"tensorParallelSize: is {count}, but {why} cannot be split over that many ranks"
    ):
        share_out(base, count)


def test_an_inner_size_that_is_too_small_is_refused() -> None:
    with pytest.raises(UnsupportedBase, match=r"is 8, but 14 inner columns in l\.up_proj cannot"):
        share_out(LATENT, 8)[0].of(Module("l.up_proj", 64, 14))
