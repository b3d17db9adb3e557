"""Shares counted from config.json equal what ranks hold, by the engine's cuts and by a naive count of modules."""

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mint_contracts.errors import UnsupportedBase
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.cut import cut_layout
from mint_engine.adapters.packed import lay_out
from mint_engine.model.base import Base
from mint_engine.model.modules import find_modules
from mint_engine.parallel.member import lay_cache, lay_member
from mint_engine.parallel.part import Part
from mint_engine.parallel.shares import Dimensions, cuts_of
from mint_engine.parallel.shares import share_out as engine_share_out
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.ranks import share_out
from mint_gateway.planning.shape import BaseShape
from tests.engine.families import CPU, FAMILIES, make_model
from tests.planning.frontier import FRONTIER
from tests.planning.models import built, config_fields

SETTINGS = EngineSettings(
    base_model="a/b", source=Source("file:///b"), device="cpu", dtype="float32", context_length=64,
    kv_cache_bytes=1 << 20, max_rank=8, device_slots=3, host_bytes=0, disk_bytes=0,
)  # fmt: skip
# Parameters of transformers' modules that are split over ranks, by the ends of their paths; each rank has the others.
HEADS = ("q_proj", "q_b_proj", "kv_b_proj", "o_proj", "k_proj", "v_proj", "qkv_proj")
COLUMNS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


def base_of(name: str) -> Base:
    return Base(make_model(FAMILIES[name]), None, frozenset(), "", 256, 96, torch.float32, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_small_bases_as_their_ranks_hold_them(name: str, count: int) -> None:
    """Compares each rank's weights, slots and cache with a real engine's, in bytes of float32."""
    config = FAMILIES[name]
    shape = read_shape(config_fields(config))
    for rank, own in enumerate(share_out(shape, count)):
        base = base_of(name)
        member = lay_member(SETTINGS, base, Part(rank, count), CPU)
        head = (
            member.share.vocabulary.size * shape.hidden
        )  # the pass cuts it out of the complete head that every rank reads
        layers = sum(each.numel() for path, each in base.model.named_parameters() if path != "lm_head.weight")
        assert own.parameters == layers + head
        assert 4 * SETTINGS.device_slots * own.adapter_elements(SETTINGS.max_rank, "all") == member.slots.bytes
        _, elements = own.cache_of(SETTINGS.context_length, whole=False)
        assert 4 * 16 * elements * (member.cache.pages + 1) == member.cache.bytes


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "llama"])
def test_routes_are_kept_where_they_are_read_and_within_the_caches_memory(name: str) -> None:
    """Only engines that train keep routes, on the first rank; every rank has as many pages as that has room for."""
    shape = read_shape(config_fields(FAMILIES[name]))
    trains = msgspec.structs.replace(SETTINGS, training_store=Source("file:///t"))
    for settings, kept in ((SETTINGS, 0), (trains, shape.route_bytes)):
        alone = lay_cache(settings, base_of(name))
        page = 16 * (4 * shape.cache_elements + kept)
        assert alone.bytes == page * (alone.pages + 1)
        assert SETTINGS.kv_cache_bytes - page < alone.bytes <= SETTINGS.kv_cache_bytes
        first, second = (lay_member(settings, base_of(name), Part(rank, 2), CPU).cache for rank in range(2))
        assert first.pages == second.pages == alone.pages
        assert first.bytes - second.bytes == 16 * kept * (alone.pages + 1)


def shape_of(family: str, of: Dimensions, inner: int) -> BaseShape:
    return read_shape(
        {
            "model_type": family,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "vocab_size": of.vocabulary,
            "num_attention_heads": of.heads,
            "num_key_value_heads": of.kv_heads,
            "head_dim": 16,
            "intermediate_size": inner,
        }
    )


@given(
    kv_heads=st.integers(1, 16), group=st.integers(1, 8), inner=st.integers(32, 400), vocabulary=st.integers(64, 900),
    count=st.integers(2, 16), family=st.sampled_from(["llama", "phi3"]),
)  # fmt: skip
def test_shares_are_the_engines(
    kv_heads: int, group: int, inner: int, vocabulary: int, count: int, family: str
) -> None:
    """Compares every linear of every rank and an adapter's size in a slot; both refuse the same splits."""
    of = Dimensions(kv_heads * group, kv_heads, vocabulary)
    shape = shape_of(family, of, 2 * inner)
    try:
        shares = engine_share_out(of, count)
    except UnsupportedBase:
        with pytest.raises(UnsupportedBase, match=f"is {count}, but .* cannot be split over that many ranks"):
            share_out(shape, count)
        return
    modules = {linear.name: Module(linear.name, linear.inputs, linear.outputs) for linear in shape.linears}
    layout = lay_out(modules, dict.fromkeys(modules, 3))
    for share, own in zip(shares, share_out(shape, count), strict=True):
        cuts = cuts_of(modules, share)
        for linear in own.linears:
            inputs, outputs, _ = cuts[linear.name]
            assert linear.inputs == (inputs.size if inputs else modules[linear.name].in_features)
            assert linear.outputs == (outputs.size if outputs else modules[linear.name].out_features)
        assert own.adapter_elements(3, "all") == cut_layout(layout, cuts).elements
        assert (own.heads, own.kv_heads, own.head_rows) == (
            share.heads.size,
            share.kv_heads.size,
            share.vocabulary.size,
        )


def naive(model: nn.Module, count: int, kv_heads: int, adapter_rank: int) -> tuple[int, int]:
    """Return the elements of weights and of an adapter on each of `count` ranks, split evenly by modules' names."""
    weights = adapter = 0
    for path, each in model.named_parameters():
        name = path.removesuffix(".weight").rpartition(".")[2]
        many = _sharers(path, name, count, kv_heads)
        weights += each.numel() // many
    for path, module in find_modules(model).items():  # type: ignore[arg-type]
        name = path.rpartition(".")[2]
        wide, high = module.in_features, module.out_features
        if module.experts:
            adapter += module.experts // count * adapter_rank * (wide + high)
            continue
        many = _sharers(path, name, count, kv_heads)
        inward = name in ("o_proj", "down_proj")
        adapter += adapter_rank * (wide // (many if inward else 1) + high // (1 if inward else many))
    return weights, adapter


def _sharers(path: str, name: str, count: int, kv_heads: int) -> int:
    if ".experts." in path or name == "lm_head" or (name in COLUMNS and ".mlp." in path):
        return count
    if name in ("k_proj", "v_proj"):
        return min(count, kv_heads)
    return count if name in HEADS and ".self_attn." in path and ".indexer." not in path else 1


@pytest.mark.parametrize("name", FRONTIER)
def test_frontier_bases_over_eight_ranks(name: str) -> None:
    """Compares with complete models on the meta device; each of Qwen3's four key/value heads is on two ranks."""
    shape, model = read_shape(FRONTIER[name]), built(FRONTIER[name])
    weights, adapter = naive(model, 8, shape.kv_heads, 2)
    for own in share_out(shape, 8):
        # The head is split in the kernels' panels of outputs, so that shares may differ by a panel.
        assert own.parameters == pytest.approx(weights, abs=48 * shape.hidden)
        assert own.adapter_elements(2, "all") == adapter
    latent = shape.latent_elements > 0
    assert own.cache_elements == shape.cache_elements // (1 if latent else min(8, shape.kv_heads))


@given(name=st.sampled_from(sorted(FRONTIER)), count=st.integers(2, 64))
def test_ranks_hold_all_of_a_base(name: str, count: int) -> None:
    """Shares of split parts add up to the whole, and every other part is on each rank."""
    shape = read_shape(FRONTIER[name])
    try:
        shares = share_out(shape, count)
    except UnsupportedBase:
        assert count > shape.kv_heads  # ranks must share a key/value head evenly, each with its own query heads
        assert count % shape.kv_heads or count > shape.heads
        return
    assert sum(own.head_rows for own in shares) == shape.vocabulary
    assert sum(own.heads for own in shares) == shape.heads
    assert sum(own.experts for own in shares) == shape.experts
    for at, linear in enumerate(shape.linears):
        held = [own.linears[at].parameters for own in shares]
        if linear.side == "whole":
            assert set(held) == {linear.parameters}
        else:
            units = {"heads": shape.heads, "kv_heads": shape.kv_heads, "columns": 1}
            twice = {"kv_heads": max(1, count // shape.kv_heads)}
            parts = [(units[of], twice.get(of, 1)) for of in linear.of]
            each = linear.parameters // sum(unit for unit, _ in parts)
            assert sum(held) == each * sum(unit * times for unit, times in parts)


def test_experts_are_not_shared_by_more_ranks_than_there_are() -> None:
    shape = read_shape(FRONTIER["kimi_k2"] | {"n_routed_experts": 10})
    assert [own.experts for own in share_out(shape, 4)] == [3, 2, 3, 2]
    with pytest.raises(UnsupportedBase, match="10 experts"):
        share_out(shape, 16)
