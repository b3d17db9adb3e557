"""Ranks share out attention, networks and experts, also where these do not divide (`test_training`: every family)."""

from pathlib import Path

import pytest

from tests.engine.parallel.playing import TURNS, built, draw_adapter, play
from tests.engine.saved_families import save_base


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "glm4_moe"])
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


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe", "kimi_k2", "glm_5", "olmo2", "minimax_m2"])
def test_three_ranks_share_what_does_not_divide(family: str, tmp_path: Path) -> None:
    """Four heads and six or eight experts over three."""
    base = save_base(family, tmp_path / "base", num_key_value_heads=4)
    found = []
    for ranks in (1, 3):
        with built(base, "float32", ranks) as (slots, generation):
            slots.load(1, draw_adapter(slots, 4))
            found.append(play(generation, TURNS[-4:], generation._forward.base.vocab_size))
    assert (found[1] - found[0]).norm() / found[0].norm() < 1e-5
