"""The linear layers that adapters target: path to (in, out) features. Each expert is its own linear, as in PEFT."""

from collections.abc import Mapping
from pathlib import Path

from mint_engine.adapters.check import expert_path
from mint_engine.adapters.pack import base_model
from mint_engine.model.modules import find_modules

MOE = "30b-a3b"
Shapes = Mapping[str, tuple[int, int]]


def expert_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """Return every linear of a base with routed experts, including each expert's, by PEFT's names."""
    shapes: dict[str, tuple[int, int]] = {}
    for path, module in find_modules(base_model(base)).items():
        for expert in range(module.experts):
            shapes[expert_path(path, expert)] = (module.in_features, module.out_features)
        if not module.experts:
            shapes[path] = (module.in_features, module.out_features)
    return shapes


def moe_30b_a3b() -> dict[str, tuple[int, int]]:
    """Return Qwen3-30B-A3B's, as in its config.json: 48 layers of 4 attention linears and 128 experts of 3."""
    hidden, heads, kv, wide, experts = 2048, 32 * 128, 4 * 128, 768, 128
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(48):
        path = f"model.layers.{layer}"
        shapes |= {
            f"{path}.self_attn.q_proj": (hidden, heads),
            f"{path}.self_attn.k_proj": (hidden, kv),
            f"{path}.self_attn.v_proj": (hidden, kv),
            f"{path}.self_attn.o_proj": (heads, hidden),
        }
        for expert in range(experts):
            shapes[f"{path}.mlp.experts.{expert}.gate_proj"] = (hidden, wide)
            shapes[f"{path}.mlp.experts.{expert}.up_proj"] = (hidden, wide)
            shapes[f"{path}.mlp.experts.{expert}.down_proj"] = (wide, hidden)
    return shapes
