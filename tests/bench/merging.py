"""Merging an adapter in PEFT's layout into a model in memory, with one product per stack of experts.

PEFT itself cannot merge single experts' adapters: transformers keeps the experts of a layer in two stacked tensors.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from tests.bench.adapters import CONFIG, WEIGHTS

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj")
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
Pair = tuple[torch.Tensor, torch.Tensor]  # A [r, in], B [out, r]


@torch.no_grad()
def merge(model: nn.Module, adapter: Path) -> None:
    """Add an adapter on linear layers and on Qwen3-MoE's stacked experts to a model's weights in place."""
    told = json.loads((adapter / CONFIG).read_text())
    scaling = told["lora_alpha"] / told["r"]
    tensors = load_file(adapter / WEIGHTS)
    stacks: dict[tuple[str, str], dict[int, Pair]] = defaultdict(dict)
    for name in tensors:
        if name.endswith(_A):
            path = name.removeprefix(_PREFIX).removesuffix(_A)
            pair = tensors[name], tensors[name.removesuffix(_A) + _B]
            expert = _EXPERT.fullmatch(path)
            if expert is None:
                model.get_parameter(f"{path}.weight").addmm_(pair[1], pair[0], alpha=scaling)
            else:
                stacks[expert[1], expert[3]][int(expert[2])] = pair
    for (path, which), pairs in stacks.items():
        _add(model.get_submodule(path), which, pairs, scaling)


def _add(experts: nn.Module, which: str, pairs: dict[int, Pair], scaling: float) -> None:
    """Add to one of the projections of a layer's experts: gate_up_proj [E, 2 I, H] or down_proj [E, H, I]."""
    if which == "down":
        weight: torch.Tensor = experts.get_parameter("down_proj")
    else:
        gate, up = experts.get_parameter("gate_up_proj").chunk(2, dim=1)
        weight = gate if which == "gate" else up
    a = torch.stack([pairs[expert][0] for expert in range(len(pairs))])  # [E, r, in]
    b = torch.stack([pairs[expert][1] for expert in range(len(pairs))])  # [E, out, r]
    weight.baddbmm_(b, a, alpha=scaling)
