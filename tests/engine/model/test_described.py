"""What is in a base's layers but not in the model of its config.json is refused, not left out silently."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import load_base
from mint_engine.parallel.part import Part
from tests.engine.saved_families import save_base

CPU = torch.device("cpu")


def save_with(folder: Path, family: str, name: str, tensor: torch.Tensor) -> Path:
    """Save a random base with one more tensor."""
    base = save_base(family, folder)
    tensors = load_file(base / "model.safetensors") | {name: tensor}
    (base / "model.safetensors").unlink()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("family", "name", "size"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias", 64),
        ("llama", "model.layers.2.self_attn.q_norm.weight", 16),
        ("gemma3_seeing", "language_model.model.layers.1.mlp.up_proj.bias", 64),
        ("minimax_m2", "model.layers.1.block_sparse_moe.gate.bias", 8),
    ],
)
def test_what_a_config_does_not_mention_is_refused(
    family: str, name: str, size: int, ranks: int, tmp_path: Path
) -> None:
    base = save_with(tmp_path, family, name, torch.ones(size))
    with pytest.raises(UnsupportedBase, match=f"has {name}, of which its config.json says nothing"):
        load_base(base, torch.float32, CPU, Part(1, 2) if ranks > 1 else None)


@pytest.mark.parametrize(
    ("family", "name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias", torch.zeros(64)),
        ("deepseek_v3", "model.layers.3.self_attn.o_proj.weight", torch.ones(48, 40)),
        ("glm_5", "model.layers.1.self_attn.indexer.wk.weight", torch.ones(16, 48)),
        ("gemma3_seeing", "vision_tower.vision_model.encoder.layers.0.mlp.fc3.weight", torch.ones(4, 4)),
        ("gpt_neox", "gpt_neox.layers.1.attention.bias", torch.ones(1, 1, 64, 64).tril().bool()),
    ],
    ids=[
        *("zeros", "a layer that predicts further tokens", "an indexer of a layer that shares a choice", "vision"),
        "a causal mask that transformers once kept in files",
    ],
)
def test_what_changes_nothing_is_passed_over(family: str, name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    load_base(save_with(tmp_path, family, name, tensor), torch.float32, CPU)
