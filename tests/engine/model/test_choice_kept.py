"""What corrects a router's choice of experts stays as it was stored, whatever dtype the engine computes in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_engine.model.base import load_base
from mint_engine.parallel.part import Part
from tests.engine.saved_families import save_base

CPU = torch.device("cpu")
# As in GLM-5.2: about 7, where bfloat16's steps are 1/32, and all different.
STORED = 7 + 0.01 * torch.arange(8)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["minimax_m2", "glm_5"])  # transformers would round the first one's
def test_biases_of_experts_are_not_rounded(family: str, dtype: torch.dtype, ranks: int, tmp_path: Path) -> None:
    base = save_base(family, tmp_path)
    tensors = load_file(base / "model.safetensors")
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    tensors |= dict.fromkeys(biases, STORED)
    save_file({name: each.clone() for name, each in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    model = load_base(base, dtype, CPU, Part(1, 2) if ranks > 1 else None).model
    found = [each for name, each in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert len(found) == len(biases) > 0
    assert all(torch.equal(each, STORED) for each in found)
    assert model.get_input_embeddings().weight.dtype == dtype
