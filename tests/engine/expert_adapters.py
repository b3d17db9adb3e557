"""PEFT adapters on the experts of tiny mixture bases."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from mint_engine.adapters.adapter import Module
from tests.engine.families import FAMILIES, make_model
from tests.engine.made import fill

ATTENTION = {
    "qwen3_moe": ["q_proj", "v_proj"],
    "gpt_oss": ["q_proj", "v_proj"],
    "deepseek_v3": ["kv_b_proj", "q_a_proj"],
}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def pairs_of(
    tensors: Mapping[str, torch.Tensor], modules: Mapping[str, Module]
) -> Iterator[tuple[str, int, torch.Tensor, torch.Tensor]]:
    """Yield (path, expert, A, B) for each expert of each stacked module: views of an adapter on both parameters."""
    for path, module in modules.items():
        if module.experts:
            experts, _, leaf = path.rpartition(".")
            name = f"base_model.model.{experts}" + (".base_layer" if leaf != "down_proj" else "")
            a = tensors[f"{name}.lora_A.weight"].view(module.experts, -1, module.in_features)
            b = tensors[f"{name}.lora_B.weight"].view(-1, a.shape[1], module.experts)[module.outputs]
            for expert in range(module.experts):
                yield path, expert, a[expert], b[:, :, expert]


def save(folder: Path, name: str, **options: Any) -> torch.nn.Module:
    """Save a random adapter with PEFT's own writer; return PEFT's model."""
    options = {"target_modules": ATTENTION[name], "r": 3, "lora_alpha": 5, **options}
    model = get_peft_model(make_model(FAMILIES[name]), LoraConfig(task_type="CAUSAL_LM", **options))
    fill(model, 1, 0.15)
    model.save_pretrained(str(folder))
    model.train(False)
    return model
