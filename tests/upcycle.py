"""SmolLM2 upcycled into experts: a real mixture whose experts all start as copies of the parent's network.

A token's weights over its experts add up to one (Mixtral's router), so the mixture answers as its parent does,
whichever experts the router chooses (sparse upcycling: Komatsuzaki et al., arXiv 2212.05055). Routers are random.
"""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedConfig, PreTrainedModel

TOP_K = 2
_ROUTER_STD = 0.5  # large enough that routes differ from token to token


def config_of(parent: PreTrainedConfig, experts: int) -> MixtralConfig:
    """Return the mixture's configuration: the parent's except for the networks."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    same = {name: copy.deepcopy(getattr(parent, name)) for name in names}
    return MixtralConfig(**same, num_local_experts=experts, num_experts_per_tok=TOP_K, sliding_window=None)


@torch.no_grad()
def upcycle(parent: PreTrainedModel, experts: int) -> PreTrainedModel:
    """Build the mixture in this process. All experts share the parent's memory, so there is only one copy."""
    config = config_of(parent.config, experts)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    theirs = parent.state_dict()
    mine = {name: theirs[name] for name in model.state_dict() if name in theirs}
    model.load_state_dict(mine, strict=False, assign=True)
    for layer, old in zip(model.model.layers, parent.model.layers, strict=True):
        both = torch.cat((old.mlp.gate_proj.weight, old.mlp.up_proj.weight))
        layer.mlp.experts.gate_up_proj = torch.nn.Parameter(both.expand(experts, -1, -1))
        layer.mlp.experts.down_proj = torch.nn.Parameter(old.mlp.down_proj.weight.expand(experts, -1, -1))
        layer.mlp.gate.weight = torch.nn.Parameter(_router(experts, both))
    model.model.rotary_emb = copy.deepcopy(parent.model.rotary_emb)
    model.tie_weights()
    model.train(False)
    return model


def write(parent: Path, folder: Path, experts: int) -> None:
    """Write the mixture as safetensors, in the parent's dtype and with its tokenizer; every expert is a copy."""
    model = AutoModelForCausalLM.from_pretrained(parent)
    config = config_of(model.config, experts)
    config.architectures, config.dtype = ["MixtralForCausalLM"], model.dtype
    config.save_pretrained(folder)
    for file in parent.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens", "generation_config")):
            shutil.copy(file, folder / file.name)
    index: dict[str, str] = {}

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file({key: each.clone().contiguous() for key, each in tensors.items()}, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    rest = {
        name: each for name, each in model.state_dict().items() if ".mlp." not in name and name != "lm_head.weight"
    }
    shard("model-rest.safetensors", rest)
    for at, layer in enumerate(model.model.layers):
        path = f"model.layers.{at}.block_sparse_moe"
        tensors = {f"{path}.gate.weight": _router(experts, layer.mlp.up_proj.weight)}
        for expert in range(experts):
            for name, linear in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                tensors[f"{path}.experts.{expert}.{name}.weight"] = getattr(layer.mlp, linear).weight
        shard(f"model-layer-{at:02}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _router(experts: int, like: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator().manual_seed(experts)
    return (torch.randn(experts, like.shape[1], generator=draw) * _ROUTER_STD).to(like.dtype)
