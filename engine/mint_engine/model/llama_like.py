"""Which bases are llama-like, for the lean passes of serving and training: their own code computes nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mint_contracts.attention import narrowest, windows
from mint_engine.model.experts import is_stack

FAMILIES = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3", "seed_oss"})
ROUTED = frozenset({"mixtral", "qwen3_moe"})  # llama-like, but with routed experts in place of networks
# As GROUPED, with multi-head latent attention.
LATENT = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"})
# As ROUTED, with routers as in DeepSeek-V3, in groups, and a network beside the experts.
GROUPED = LATENT | {"dots1", "glm4_moe"}
# Others, with norms elsewhere or of another kind, GELU, caps, sinks, multipliers, or another rotation of heads.
GEMMA = frozenset({"gemma", "gemma2", "gemma3_text"})
HUNYUAN = frozenset({"hunyuan_v1_dense", "hunyuan_v1_moe"})
ERNIE = frozenset({"ernie4_5", "ernie4_5_moe"})
_MORE = frozenset({"exaone4", "gpt_oss", "granite", "granitemoe", "minimax_m2", "olmo2", "olmo3", "smollm3"})
OTHERS = GEMMA | HUNYUAN | ERNIE | _MORE
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # types whose angles do not depend on a request's length
# Vision families' tokens that stand for images: transformers embeds them as token 0 when there is no image.
_PLACEHOLDERS = {"kimi_k25": ("image_token_id", "video_token_id"), "gemma3": ("image_token_id",)}
_PLACED_OUTSIDE = frozenset({"gemma3"})  # if they lie outside the vocabulary; otherwise like any token

# Linears of the same input, which are multiplied at once, by the module that has them; Phi-3 has them fused.
_BESIDE: dict[str, tuple[str, ...]] = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


class Unlike(Exception):
    """The base is not llama-like; the message says how it differs."""


def check_config(config: Any, positions: int) -> None:
    """Raise Unlike for a configuration that needs something else for requests of up to `positions` tokens."""
    if config.model_type not in FAMILIES | ROUTED | GROUPED | OTHERS:
        raise Unlike(f"the family {config.model_type} has no lean pass")
    window = narrowest(lambda name: getattr(config, name, None))
    if window is not None and window < positions and window not in windows_of(config, positions):
        raise Unlike(f"attention may slide over {window} tokens, and the layers where it does are not given")
    _check_ropes(config)


def windows_of(config: Any, positions: int) -> tuple[int, ...]:
    """How many of the last tokens each layer's attention sees, for up to `positions` tokens; 0: all."""
    found = windows(lambda name: getattr(config, name, None), int(config.num_hidden_layers))
    return tuple(each if each is not None and each < positions else 0 for each in found)


def _check_ropes(config: Any) -> None:
    for rotation in _ropes(config.rope_parameters or {}):
        if config.model_type in HUNYUAN and rotation.get("alpha"):
            continue  # stretches all angles once, whatever the type is called
        if (rope := rotation.get("rope_type", "default")) not in _ROPES:
            raise Unlike(f"rotary positions are of type {rope}")


def _ropes(parameters: Any) -> Iterator[Any]:
    """Yield the rotary parameters, those of all layers or of each kind of layers."""
    kinds = [each for each in parameters.values() if isinstance(each, dict)]
    yield from kinds or [parameters]


def latent_norms(attention: Any) -> tuple[Any, Any]:
    """Return latent attention's norms of latents, and of compressed queries if it has these. Raises Unlike."""
    norm, query_norm = attention.kv_a_layernorm, attention.q_a_layernorm
    if query_norm is not None and query_norm.variance_epsilon != norm.variance_epsilon:
        raise Unlike("its latents' norms differ")
    return norm, query_norm


def interleaves(config: Any) -> bool:
    """Whether latent attention rotates interleaved neighbours, not halves; it does if the configuration is silent."""
    return bool(getattr(config, "rope_interleave", True))


def attends_to_some(config: Any, positions: int) -> bool:
    """Whether an indexer has a choice to make, for requests of up to `positions` tokens."""
    return 0 < int(getattr(config, "index_topk", None) or 0) < positions


def check_indexer(indexer: Any) -> None:
    """Raise Unlike if the indexer's linears of one input differ in dtype."""
    if indexer.weights_proj.weight.dtype != indexer.k_norm.weight.dtype:
        raise Unlike("what weighs its indexer's heads is of another dtype")


def placeholders_of(config: Any) -> torch.Tensor:
    """Return the tokens that a complete model's configuration embeds as token 0 [n] int64. Raises Unlike."""
    names, text = _PLACEHOLDERS.get(config.model_type, ()), config.get_text_config()
    if not names and text is not config:
        raise Unlike(f"it sees, as {config.model_type} does")
    least = int(text.vocab_size) if config.model_type in _PLACED_OUTSIDE else 0
    found = [token for token in (int(getattr(config, name)) for name in names) if token >= least]
    return torch.tensor(found, dtype=torch.int64)


def embedded(tokens: torch.Tensor, placeholders: torch.Tensor) -> torch.Tensor:
    """Return the tokens [n] whose embeddings are used: token 0 for placeholders."""
    return tokens.masked_fill(torch.isin(tokens, placeholders), 0) if placeholders.numel() else tokens


def names_of(kind: str, module: Any) -> tuple[str, ...]:
    """Names of the linears that take an attention's ("qkv") or network's ("gate_up") input, except an indexer's."""
    if kind == "qkv" and hasattr(module, "kv_a_proj_with_mqa"):
        return "q_proj" if module.q_lora_rank is None else "q_a_proj", "kv_a_proj_with_mqa"
    fused = f"{kind}_proj"
    return (fused,) if hasattr(module, fused) else _BESIDE[kind]


def bias_of(linears: Sequence[nn.Linear]) -> torch.Tensor | None:
    """Biases of linears that are multiplied at once [out], zeros for those without; None if none has any."""
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [each.bias if each.bias is not None else torch.zeros_like(each.weight[:, 0]) for each in linears]
    )


def network_of(path: str, mlp: Any) -> tuple[str, Any]:
    """Path and module of the network that all tokens take, in the block at `path`; None if it has only experts."""
    if not hasattr(mlp, "experts"):
        return path, mlp
    name = "shared_mlp" if hasattr(mlp, "shared_mlp") else "shared_experts"
    return f"{path}.{name}", getattr(mlp, name, None)


def block_of(path: str, layer: Any) -> tuple[str, Any]:
    """The path and module of a layer's network or experts."""
    name = "mlp" if hasattr(layer, "mlp") else "block_sparse_moe"
    return f"{path}.{name}", getattr(layer, name)


def router_of(mlp: Any) -> Any:
    """The module that chooses among experts, of the block that has both."""
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def check_experts(experts: Any) -> None:
    """Raise Unlike for experts that are not stacked in transformers' way."""
    if not is_stack(experts):
        raise Unlike("its experts are laid out in another way")
