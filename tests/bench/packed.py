"""A base whose routed experts are published in INT4, as compressed-tensors packs those of Kimi-K2-Thinking."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.engine.integers import packed_config

GROUP = 32  # inputs that have one scale
_BITS, _EACH = 4, 8  # numbers in a word


def write_packed(plain: Path, folder: Path) -> None:
    """A base's copy in which every linear of its routed experts is packed."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    places: dict[str, str] = {}
    for file in sorted(plain.glob("*.safetensors")):
        tensors = load_file(file)
        for name in [each for each in tensors if ".experts." in each]:
            tensors |= _packed(name.removesuffix(".weight"), tensors.pop(name))
        save_file(tensors, folder / file.name, {"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((plain / "config.json").read_text())
    told = packed_config("lm_head", "re:.*self_attn.*", "re:.*gate$", strategy="group", group_size=GROUP)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))


def _packed(path: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    scales = (2 * groups.abs().amax(2) / ((1 << _BITS) - 1)).to(weight.dtype)
    numbers = (groups / scales.float().unsqueeze(2)).round().clamp(-8, 7).long().flatten(1) + 8
    words = (numbers.view(len(weight), -1, _EACH) << _BITS * torch.arange(_EACH)).sum(2)
    return {
        f"{path}.weight_packed": words.to(torch.int32),
        f"{path}.weight_scale": scales,
        f"{path}.weight_shape": torch.tensor(weight.shape),
    }
