"""Ranks share out attention, networks and experts of every family, and compute what a single rank does."""

from pathlib import Path

import pytest
import torch

from mint_engine.adapters.adapter import Module
from mint_engine.adapters.packed import Packed
from mint_engine.residency.slots import Slots
from tests.engine.made import Delta, pack
from tests.engine.parallel.playing import TURNS, built, play
from tests.engine.saved_families import save_base

FAMILIES = (
    "mistral", "gemma2", "gemma3", "phi3", "olmo2", "olmo3_one_key", "qwen3_moe", "gpt_oss", "deepseek_v3",
    "deepseek_v3_plain_query", "kimi_k2", "deepseek_v32", "glm_5",
)  # fmt: skip
LEAN = ("qwen3_moe",)  # those of them that own kernels compute


def draw_adapter(slots: Slots, rank: int) -> Packed:
    """On every linear of the layers: attention, indexer, networks, shared and routed experts."""
    draw = torch.Generator().manual_seed(rank)

    def delta(module: Module) -> Delta:
        stacked = (module.experts,) if module.experts else ()
        a = torch.randn(*stacked, rank, module.in_features, generator=draw) * 0.15
        return Delta(a, torch.randn(*stacked, module.out_features, rank, generator=draw) * 0.15, 2.0)

    return pack(slots.modules, {path: delta(module) for path, module in slots.modules.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_compute_what_one_does(family: str, tmp_path: Path) -> None:
    base = save_base(family, tmp_path / "base")
    found = []
    for ranks in (1, 2):
        with built(base, "float32", ranks) as (slots, generation):
            assert generation.compute.startswith("lean") is (family in LEAN)
            vocabulary = generation._forward.base.vocab_size
            for slot, rank in enumerate((4, 9)):
                slots.load(slot, draw_adapter(slots, rank))
            mixed = play(generation, TURNS, vocabulary)
            slots.load(0, draw_adapter(slots, 9))  # in place of another
            slots.clear(1)
            found.append(torch.cat([mixed, play(generation, TURNS, vocabulary)]))
    one, two = found
    assert (two - one).norm() / one.norm() < 1e-5
    assert torch.equal(two.argmax(-1), one.argmax(-1))


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_ranks_hold_their_shares_alone(family: str, tmp_path: Path) -> None:
    """Half of the experts and of the heads, and of adapters the same: little is held twice."""
    base, held = save_base(family, tmp_path / "base"), []
    for ranks in (1, 2):
        with built(base, "float32", ranks) as (slots, generation):
            weights = [
                parameter.numel()
                for path, parameter in generation._forward.base.model.named_parameters()
                if ".experts." in path or "o_proj" in path or "shared_experts" in path
            ]
            slots.load(0, draw_adapter(slots, 4))
            held.append((sum(weights), int(slots.filled[0])))
    (layers, adapter), (own_layers, own_adapter) = held
    assert own_layers < 0.52 * layers
    assert own_adapter < 0.7 * adapter


@pytest.mark.parametrize("family", ["qwen3_moe", "glm_5", "olmo2"])
def test_three_ranks_share_what_does_not_divide(family: str, tmp_path: Path) -> None:
    """Four heads and six or eight experts over three."""
    base = save_base(family, tmp_path / "base", num_key_value_heads=4)
    found = []
    for ranks in (1, 3):
        with built(base, "float32", ranks) as (slots, generation):
            slots.load(1, draw_adapter(slots, 4))
            found.append(play(generation, TURNS[-4:], generation._forward.base.vocab_size))
    assert (found[1] - found[0]).norm() / found[0].norm() < 1e-5
