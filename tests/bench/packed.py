"""A base whose routed experts are published in INT4, as compressed-tensors packs those of Kimi-K2-Thinking."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.engine.integers import Layout, quantise_integers

GROUP = 32  # inputs per scale
_LAYOUT = Layout(4, "group", GROUP, ignore=("lm_head", "re:.*self_attn.*", "re:.*gate$"))
_EACH = 8  # numbers per word


def write_packed(plain: Path, folder: Path) -> None:
    """Write a copy of a base in which every linear layer of its routed experts is packed."""
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
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _LAYOUT.told}))


def _packed(path: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Do the same as `tests.engine.integers.packed_tensors`, which packs numbers one by one and is too slow here."""
    numbers = quantise_integers(weight, _LAYOUT)
    codes = (numbers.values.long() + 8).view(len(weight), -1, _EACH)
    return {
        f"{path}.weight_packed": (codes << _LAYOUT.bits * torch.arange(_EACH)).sum(2).to(torch.int32),
        f"{path}.weight_scale": numbers.scales,
        f"{path}.weight_shape": torch.tensor(weight.shape),
    }
