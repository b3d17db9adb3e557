"""Bases that cannot be split over the ranks are refused, and the refusal names why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitNetConfig, FlexOlmoConfig, NanoChatConfig, PreTrainedConfig

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import Base
from mint_engine.parallel.member import lay_member
from mint_engine.parallel.part import Part
from tests.engine.families import CPU, FAMILIES, SIZES, make_model
from tests.engine.running import settings_for

NAMED: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "head_dim"} | {"hidden_size": 64}


@pytest.mark.parametrize(
    ("config", "ranks", "why"),
    [
        (
            FlexOlmoConfig(**NAMED),
            2,
            "is more than 1, and the base has model.layers.0.self_attn.q_norm, which cannot be split",
        ),
        (
            BitNetConfig(**NAMED),
            2,
            "is more than 1, and the base has model.layers.0.self_attn.attn_sub_norm, which cannot be split",
        ),
        (
            NanoChatConfig(**NAMED),
            2,
            "is more than 1, and the base has model.layers.0.mlp.fc1, which cannot be split",
        ),
        (FAMILIES["qwen3_moe"], 8, "is 8, but 4 query heads over 2 key/value heads"),
        (FAMILIES["deepseek_v3"], 5, "is 5, but 4 query heads over 4 key/value heads"),
    ],
    ids=[
        "a norm over all heads of a family that is not known",
        "a norm of what ranks have parts of",
        "other linears",
        "few heads",
        "few heads over latents",
    ],
)
def test_bases(config: PreTrainedConfig, ranks: int, why: str) -> None:
    model = make_model(config)
    base = Base(model, None, frozenset(), "", 256, 96, torch.float32, CPU)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedBase, match=f"tensorParallelSize: {why}"):
        lay_member(settings_for(Path("none")), base, Part(0, ranks), CPU)
