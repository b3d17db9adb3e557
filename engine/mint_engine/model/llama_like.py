"""Which bases are llama-like, for serving's lean pass and training's: their own code computes nothing else."""

from typing import Any

from mint_contracts.attention import narrowest
from mint_engine.model.experts import is_stack

FAMILIES = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3", "seed_oss"})
ROUTED = frozenset({"mixtral", "qwen3_moe"})  # llama-like, but for routed experts in place of networks
# The same with routers of DeepSeek-V3's kind, in groups, and a network beside the experts.
GROUPED = frozenset({"dots1", "glm4_moe"})
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # whose angles do not depend on a request's length


# The linears of one input that are multiplied at once, by what takes them; Phi-3 has them in one.
_BESIDE = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


class Unlike(Exception):
    """The base is not llama-like; the message says where."""


def check_config(config: Any, positions: int) -> None:
    """Raises Unlike for a configuration that asks for something else of requests of so many tokens at most."""
    if config.model_type not in FAMILIES | ROUTED | GROUPED:
        raise Unlike(f"the family {config.model_type} has no lean pass")
    if config.hidden_act != "silu":
        raise Unlike(f"the activation is {config.hidden_act}")
    window = narrowest(lambda name: getattr(config, name, None))
    if window is not None and window < positions:
        raise Unlike(f"attention slides over {window} tokens, of requests of up to {positions}")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _ROPES:
        raise Unlike(f"rotary positions are of type {rope}")


def names_of(kind: str, module: Any) -> tuple[str, ...]:
    """What an attention ("qkv") or network ("gate_up") calls the linears that take its input."""
    fused = f"{kind}_proj"
    return (fused,) if hasattr(module, fused) else _BESIDE[kind]


def network_of(path: str, mlp: Any) -> tuple[str, Any]:
    """The network that all tokens take, and where it is, of the part at `path`; None beside experts alone."""
    if not hasattr(mlp, "experts"):
        return path, mlp
    return f"{path}.shared_experts", getattr(mlp, "shared_experts", None)


def check_experts(experts: Any) -> None:
    """Raises Unlike for experts that are not stacked as [E, out, in], gates before what they gate, without biases."""
    if not is_stack(experts) or experts.is_transposed or experts.has_bias or not experts.is_concatenated:
        raise Unlike("its experts are laid out in another way")
