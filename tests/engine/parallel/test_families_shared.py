"""Ranks share attention, networks and experts, even if these do not divide (`test_training`: every family)."""

from pathlib import Path

import pytest
import torch

from mint_engine.model.base import Base, load_base
from tests.engine.parallel.playing import TURNS, built, draw_adapter, play
from tests.engine.saved_families import save_base


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "glm4_moe"])
def test_ranks_hold_their_shares_alone(family: str, tmp_path: Path) -> None:
    """Half of the experts and of the heads, and the same of adapters: little is held twice."""
    base, adapters = save_base(family, tmp_path / "base"), []
    layers = shared_weights(load_base(base, torch.float32, torch.device("cpu")))
    for ranks in (1, 2):
        with built(base, ranks) as (slots, generation):
            slots.load(0, draw_adapter(slots, 4))
            adapters.append(int(slots.filled[0]))
            if ranks == 2:
                assert shared_weights(generation._forward.base) < 0.52 * layers
    assert adapters[1] < 0.7 * adapters[0]


def shared_weights(base: Base) -> int:
    """The number of parameters that ranks share evenly."""
    shared = ".experts.", "o_proj", "shared_experts"
    named = base.model.named_parameters()
    return sum(parameter.numel() for path, parameter in named if any(part in path for part in shared))


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe", "kimi_k2", "glm_5", "olmo2", "minimax_m2", "afmoe"])
def test_three_ranks_share_what_does_not_divide(family: str, tmp_path: Path) -> None:
    """Four heads and six or eight experts over three ranks."""
    base = save_base(family, tmp_path / "base", num_key_value_heads=4)
    found = []
    for ranks in (1, 3):
        with built(base, ranks) as (slots, generation):
            slots.load(1, draw_adapter(slots, 4))
            found.append(play(generation._forward, TURNS[-4:]))
    assert (found[1] - found[0]).norm() / found[0].norm() < 1e-5
