"""Bases of frontier families, and PEFT adapters on all their modules, as folders that an engine loads."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AfmoeConfig, GPTNeoXConfig, MixtralConfig

from mint_engine.model.base import Base
from tests.engine.copies import digest, put
from tests.engine.families import FAMILIES, MOE, SEEING, SIZES, make_model, read_model
from tests.engine.made import edit_config, fill
from tests.engine.running import save_tokenizer

# In their files, mixtral's experts and all layers of vision bases have other names than in the model.
BASES = FAMILIES | SEEING | {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=6), "afmoe": AfmoeConfig(**SIZES, **MOE, sliding_window=9),
}  # fmt: skip
_OLD = {name: size for name, size in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
WHOLE = {"gpt_neox": GPTNeoXConfig(**_OLD)}  # by one rank only
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
# What the adapters target: rank 4 on all of it, rank 3 on the attention alone.
SERVED: dict[str, dict[str, Any]] = {
    "gemma3": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "gemma3_seeing": {"target_modules": ["up_proj", "down_proj", "q_proj"], "exclude_modules": ".*vision_tower.*"},
    "qwen3_moe": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "gpt_oss": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "hunyuan_moe": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "minimax_m2": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "deepseek_v3": {"target_modules": LATENT, "target_parameters": EXPERTS},
    "kimi_seeing": {"target_modules": LATENT, "target_parameters": EXPERTS},
    "deepseek_v32": {"target_modules": LATENT, "target_parameters": EXPERTS},
    "glm_5": {"target_modules": LATENT, "target_parameters": EXPERTS},
}


def weights(base: Base) -> dict[str, torch.Tensor]:
    """All parameters and buffers of the base's model, by name."""
    return dict(base.model.state_dict()) | dict(base.model.named_buffers())


def save_base(name: str, folder: Path, **changes: Any) -> Path:
    """Save a random base of the family, and its tokenizer."""

    def make(folder: Path) -> None:
        config = copy.deepcopy((BASES | WHOLE)[name])
        for field, value in (changes | {"vocab_size": save_tokenizer(folder)}).items():
            setattr(config.get_text_config(), field, value)
        make_model(config).save_pretrained(folder)

    put(folder, f"{name} {sorted(changes.items())}", make)
    return folder


def save_adapter(base: Path, folder: Path, rank: int, **options: Any) -> Path:
    """Save a random adapter with PEFT."""

    def make(folder: Path) -> None:
        model = read_model(base)
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, **options))
        fill(peft, rank, 0.15)
        peft.save_pretrained(str(folder))

    put(folder, f"family's adapter {rank} {sorted(options.items())} {digest(base)}", make)
    edit_config(folder, base_model_name_or_path=str(base))
    return folder
