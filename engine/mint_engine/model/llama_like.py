"""Which bases are llama-like, for serving's lean pass and training's: their own code computes nothing else."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mint_contracts.attention import narrowest
from mint_engine.model.experts import is_stack

FAMILIES = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3", "seed_oss"})
ROUTED = frozenset({"mixtral", "qwen3_moe"})  # llama-like, but for routed experts in place of networks
# Like GROUPED, with multi-head latent attention.
LATENT = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"})
# The same with routers of DeepSeek-V3's kind, in groups, and a network beside the experts.
GROUPED = LATENT | {"dots1", "glm4_moe"}
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # whose angles do not depend on a request's length
# Of families that see, which tokens stand for what is seen: transformers embeds them as token 0 where nothing is.
_PLACEHOLDERS = {"kimi_k25": ("image_token_id", "video_token_id")}

# The linears of one input that are multiplied at once, by what takes them; Phi-3 has them in one.
_BESIDE: dict[str, tuple[str, ...]] = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


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


def latent_norms(attention: Any) -> tuple[Any, Any]:
    """Latent attention's norms of latents, and of compressed queries where there are such. Raises Unlike."""
    norm, query_norm = attention.kv_a_layernorm, attention.q_a_layernorm
    if query_norm is not None and query_norm.variance_epsilon != norm.variance_epsilon:
        raise Unlike("its latents' norms differ")
    return norm, query_norm


def interleaves(config: Any) -> bool:
    """Whether latent attention turns neighbours together, and not halves; so it does where that is not told."""
    return bool(getattr(config, "rope_interleave", True))


def attends_to_some(config: Any, positions: int) -> bool:
    """Whether an indexer has something to choose, of requests of so many tokens at most."""
    return 0 < int(getattr(config, "index_topk", None) or 0) < positions


def placeholders_of(config: Any) -> torch.Tensor:
    """Tokens of a whole model's configuration that are embedded as token 0 [n] int64. Raises Unlike."""
    names = _PLACEHOLDERS.get(config.model_type, ())
    if not names and config.get_text_config() is not config:
        raise Unlike(f"it sees, as {config.model_type} does")
    return torch.tensor([int(getattr(config, name)) for name in names], dtype=torch.int64)


def embedded(tokens: torch.Tensor, placeholders: torch.Tensor) -> torch.Tensor:
    """Whose embeddings tokens [n] have."""
    return tokens.masked_fill(torch.isin(tokens, placeholders), 0) if placeholders.numel() else tokens


def names_of(kind: str, module: Any) -> tuple[str, ...]:
    """What an attention ("qkv") or network ("gate_up") calls the linears that take its input; an indexer's aside."""
    if kind == "qkv" and hasattr(module, "kv_a_proj_with_mqa"):
        return "q_proj" if module.q_lora_rank is None else "q_a_proj", "kv_a_proj_with_mqa"
    fused = f"{kind}_proj"
    return (fused,) if hasattr(module, fused) else _BESIDE[kind]


def bias_of(linears: Sequence[nn.Linear]) -> torch.Tensor | None:
    """Of linears that are multiplied at once [out], zeros for those that have none; None where no one has."""
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [each.bias if each.bias is not None else torch.zeros_like(each.weight[:, 0]) for each in linears]
    )


def network_of(path: str, mlp: Any) -> tuple[str, Any]:
    """The network that all tokens take, and where it is, of the part at `path`; None beside experts alone."""
    if not hasattr(mlp, "experts"):
        return path, mlp
    return f"{path}.shared_experts", getattr(mlp, "shared_experts", None)


def check_experts(experts: Any) -> None:
    """Raises Unlike for experts that are not stacked as [E, out, in], gates before what they gate, without biases."""
    if not is_stack(experts) or experts.is_transposed or experts.has_bias or not experts.is_concatenated:
        raise Unlike("its experts are laid out in another way")
