"""Reads a base's shape out of its config.json, family by family, as transformers builds the model from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mint_contracts.errors import UnsupportedBase
from mint_gateway.planning.shape import BaseShape, Kind, Linear

LLAMA_LIKE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mixtral", "qwen3_moe"}
)
LATENT = frozenset({"deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa"})
FAMILIES = LLAMA_LIKE | LATENT | {"gpt_oss"}

_TIED = frozenset({"gemma", "gemma2", "gemma3_text"})  # share embedding and head unless the config says otherwise
_HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})  # before and after attention and network


def read_shape(config: Mapping[str, Any]) -> BaseShape:
    """The shape that a config.json describes. Raises UnsupportedBase where it is none that is known."""
    told = config.get("text_config") or config
    family = told.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedBase(
            f"model type {family!r}", f"can not be planned; known are {', '.join(sorted(FAMILIES))}"
        )
    try:
        return _read(family, told)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedBase(
            f"model type {family!r}", f"has a config.json that lacks or garbles {error}; give the base's own"
        ) from None


def _read(family: str, told: Mapping[str, Any]) -> BaseShape:
    hidden, layers, vocabulary = told["hidden_size"], told["num_hidden_layers"], told["vocab_size"]
    attention, other, cache = (_latent if family in LATENT else _grouped)(family, told)
    network, routers = _networks(family, told)
    norms = (4 if family in _FOUR_NORMS else 2) * layers * hidden + hidden
    tied = told.get("tie_word_embeddings", family in _TIED)
    return BaseShape(
        model_type=family,
        linears=(*attention, *network),
        other_parameters=other + routers + norms + vocabulary * hidden * (1 if tied else 2),
        cache_elements=cache,
        context_length=told.get("max_position_embeddings", 0),
    )


def _grouped(family: str, told: Mapping[str, Any]) -> tuple[list[Linear], int, int]:
    """Grouped-query attention: its linears, its other parameters, and a token's cache."""
    hidden, layers, heads = told["hidden_size"], told["num_hidden_layers"], told["num_attention_heads"]
    size = told.get("head_dim") or hidden // heads
    kv = (told.get("num_key_value_heads") or heads) * size
    biased = bool(told.get("attention_bias", family == "gpt_oss"))
    linears = [
        Linear(name, wide, high, layers, "attention", bias)
        for name, wide, high, bias in (
            ("q_proj", hidden, heads * size, biased or family == "qwen2"),
            ("k_proj", hidden, kv, biased or family == "qwen2"),
            ("v_proj", hidden, kv, biased or family == "qwen2"),
            ("o_proj", heads * size, hidden, biased),
        )
    ]
    other = layers * (2 * size if family in _HEAD_NORMS else 0) + layers * (heads if family == "gpt_oss" else 0)
    return linears, other, 2 * layers * kv


def _latent(family: str, told: Mapping[str, Any]) -> tuple[list[Linear], int, int]:
    """Latent attention, with its indexer where it is sparse."""
    hidden, layers, heads = told["hidden_size"], told["num_hidden_layers"], told["num_attention_heads"]
    latent, rotated = told["kv_lora_rank"], told["qk_rope_head_dim"]
    query: int = told.get("q_lora_rank") or 0
    key, value = told["qk_nope_head_dim"], told["v_head_dim"]
    biased = bool(told.get("attention_bias", False))
    shapes = [
        ("kv_a_proj_with_mqa", hidden, latent + rotated, biased),
        ("kv_b_proj", latent, heads * (key + value), False),
        ("o_proj", heads * value, hidden, biased),
    ]
    if query:
        shapes += [("q_a_proj", hidden, query, biased), ("q_b_proj", query, heads * (key + rotated), False)]
    else:
        shapes.append(("q_proj", hidden, heads * (key + rotated), False))
    linears = [Linear(name, wide, high, layers, "attention", bias) for name, wide, high, bias in shapes]
    other = layers * (latent + query)
    if family not in ("deepseek_v32", "glm_moe_dsa"):
        return linears, other, layers * (latent + rotated)
    size, count, full = told["index_head_dim"], told["index_n_heads"], _full_indexers(told)
    for name, wide, high in (("wq_b", query, count * size), ("wk", hidden, size), ("weights_proj", hidden, count)):
        linears.append(Linear(name, wide, high, full, "attention"))
    return linears, other + full * 2 * size, layers * (latent + rotated + size)


def _full_indexers(told: Mapping[str, Any]) -> int:
    """Layers with an indexer of their own; the others share an earlier one's choice (GLM-5)."""
    layers = int(told["num_hidden_layers"])
    if told.get("indexer_types"):
        return list(told["indexer_types"]).count("full")
    if pattern := told.get("index_topk_pattern"):
        return sum(each in ("F", "full") for each in pattern)
    often, skipped = max(told.get("index_topk_freq") or 1, 1), told.get("index_skip_topk_offset", 2)
    return sum(max(at - skipped + 1, 0) % often == 0 for at in range(layers))


def _networks(family: str, told: Mapping[str, Any]) -> tuple[list[Linear], int]:
    """The layers' networks, dense or of experts, and the routers' parameters."""
    hidden, layers = told["hidden_size"], told["num_hidden_layers"]
    experts = told.get("num_local_experts") or told.get("n_routed_experts") or told.get("num_experts") or 0
    routed = len(_routed_layers(family, told)) if experts else 0
    inner = told["intermediate_size"]
    found = _gated(hidden, inner, layers - routed, "network", bias=bool(told.get("mlp_bias")) and family == "llama")
    if not routed:
        return found, 0
    small = inner if family in ("mixtral", "gpt_oss") else told["moe_intermediate_size"]
    found += _gated(hidden, small, routed * experts, "expert", bias=family == "gpt_oss")
    if shared := told.get("n_shared_experts", 1) if family in LATENT else 0:
        found += _gated(hidden, small * shared, routed, "network")
    return found, routed * (experts * hidden + (experts if family == "gpt_oss" else 0))


def _routed_layers(family: str, told: Mapping[str, Any]) -> Sequence[int]:
    layers = range(told["num_hidden_layers"])
    if kinds := told.get("mlp_layer_types"):
        return [at for at in layers if kinds[at] == "sparse"]
    if family in LATENT:
        return layers[told.get("first_k_dense_replace", 3) :]
    if family == "qwen3_moe":
        step, plain = told.get("decoder_sparse_step", 1), told.get("mlp_only_layers") or ()
        return [at for at in layers if at not in plain and (at + 1) % step == 0]
    return layers


def _gated(hidden: int, inner: int, count: int, kind: Kind, *, bias: bool = False) -> list[Linear]:
    if not count:
        return []
    return [
        Linear("gate_proj", hidden, inner, count, kind, bias),
        Linear("up_proj", hidden, inner, count, kind, bias),
        Linear("down_proj", inner, hidden, count, kind, bias),
    ]
