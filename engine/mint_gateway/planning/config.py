"""Reading a base's shape from its config.json, family by family, as transformers builds the model from it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from mint_contracts.attention import narrowest, unserved_attention, windows
from mint_contracts.errors import UnsupportedBase
from mint_contracts.quantisation import read_quantisation
from mint_gateway.planning.config_schema import check_fields, garbled, text_of
from mint_gateway.planning.field_names import with_names
from mint_gateway.planning.shape import BaseShape, Kind, Linear, Of, Side
from mint_gateway.planning.unquantised import Chosen, head_is_plain, plain_layers, read_chosen
from mint_gateway.planning.vision import SEEING, vision_of, vision_parameters
from mint_gateway.planning.windows import with_windows

GROUPED = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "phi3"),
        *("olmo2", "olmo3", "mixtral", "qwen3_moe", "gpt_oss", "minimax_m2", "glm4_moe", "seed_oss", "granitemoe"),
        *("ernie4_5", "ernie4_5_moe", "dots1", "hunyuan_v1_dense", "hunyuan_v1_moe", "exaone4"),
    }
)
LATENT = frozenset({"deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite"})
FAMILIES = GROUPED | LATENT

# Embedding and head share weights unless the config says otherwise.
_TIED = frozenset({"gemma", "gemma2", "gemma3_text", "smollm3", "ernie4_5", "ernie4_5_moe"})
_WIDE_NORMS = frozenset({"minimax_m2", "olmo2", "olmo3"})  # norms of queries and keys over all heads at once
_FUSED = frozenset({"phi3"})  # queries, keys and values are one linear, gate and up another
_BIASED = frozenset({"gpt_oss", "seed_oss"})  # biases of queries, keys and values, unless the config says otherwise
_PLAIN_OUTPUTS = frozenset({"glm4_moe", "seed_oss"})  # `attention_bias` does not apply to attention's outputs
# If the config has `mlp_bias`.
_NETWORK_BIASES = frozenset({"llama", "granite", "smollm3", "seed_oss", "ernie4_5", "ernie4_5_moe"})
_HEAD_BIASES = frozenset({"ernie4_5_moe"})  # also for the head that makes logits
_HEAD_NORMS = frozenset(
    {"qwen3", "qwen3_moe", "gemma3_text", "dots1", "hunyuan_v1_dense", "hunyuan_v1_moe", "exaone4"}
)
_HEAD_NORMS_IF_SET = frozenset({"glm4_moe"})
_LIKE_DEEPSEEK = LATENT | {"glm4_moe", "dots1"}  # first layers have no experts, the others a shared one
# Families with shared experts and float32 routers; the default number of shared experts.
_SHARED = dict.fromkeys(_LIKE_DEEPSEEK, 1) | {"ernie4_5_moe": 2, "hunyuan_v1_moe": 1}
_SHARED_WITHIN = {"hunyuan_v1_moe": "shared_mlp"}  # others: shared_experts
# Families whose experts' inner size is `intermediate_size`.
_INNER_OF_EXPERTS = frozenset({"mixtral", "gpt_oss", "minimax_m2", "granitemoe", "hunyuan_v1_moe"})
_DENSE_FIRST = {"glm4_moe": 1, "dots1": 0}  # default number of first layers without experts; others: 3
# Default number of experts per token; others: 8.
_ROUTED_TO = {"mixtral": 2, "gpt_oss": 4, "glm4_moe_lite": 4, "granitemoe": 2, "ernie4_5_moe": 6, "hunyuan_v1_moe": 1}
_WEIGHED_ROUTERS = frozenset({"gpt_oss", "ernie4_5_moe"})  # one more parameter per expert
_LINEAR_ROUTERS = frozenset({"mixtral", "qwen3_moe"})  # routers are ordinary linears, which may be quantised
_INDEXED = frozenset({"deepseek_v32", "glm_moe_dsa"})
_CHOSEN = 2048  # default number of tokens that an indexer chooses
# Transformers' defaults for fields that published config.json files leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072,
    },
    "ernie4_5": {"head_dim": 128},
}  # fmt: skip
_LAYERED = frozenset({"gemma3_text", "olmo3"})  # sliding and full layers have different rotary positions
_LEAN_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
_STRETCHED = frozenset({"hunyuan_v1_dense", "hunyuan_v1_moe"})  # `alpha` scales all angles once
_LONG_ROPES = frozenset({"longrope", "su"})  # two sets of angles, of which a whole pass uses one
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})  # norms before and after attention and network
_GIVEN_NORMS = _FOUR_NORMS | {"exaone4", "olmo2", "olmo3"}  # norms after attention and network


def read_shape(config: Mapping[str, Any], subject: str = "config.json") -> BaseShape:
    """Return the shape that a config.json describes. Raises UnsupportedBase about `subject` if there is none."""
    text = text_of(config, subject)
    family = text.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedBase(
            subject, f"is of model type {family!r}, which cannot be planned for; supported: {known}"
        )
    fields, vision = _DEFAULTS.get(family, {}) | with_names(family, text, subject), vision_of(config)
    check_fields(fields, config, vision, subject)
    if text is not config and vision is None:  # every rank holds the rest as well, whose size is not known
        raise UnsupportedBase(
            subject,
            f"is of model type {config.get('model_type')!r}, of which {family!r} is only a part; such bases cannot "
            f"be planned for, except {' and '.join(SEEING)}",
        )
    try:
        shape = _read(family, fields)
        images = vision_parameters(config, vision, shape.hidden) if vision is not None else 0
    except KeyError as error:
        raise garbled(subject, f"`{error.args[0]}` is missing") from None
    shape = msgspec.structs.replace(shape, small_parameters=shape.small_parameters + images)
    try:
        files = read_quantisation(config, "the base")
    except UnsupportedBase as error:
        return msgspec.structs.replace(shape, unread=f"the base {error.message}")
    try:
        chosen = read_chosen(config)
        shape = _with_plain(shape, family, fields, chosen) if chosen is not None else shape
    except ValueError as error:  # or a ValidationError, which is one
        raise garbled(subject, str(error)) from None
    return msgspec.structs.replace(shape, files=files)


def _with_plain(shape: BaseShape, family: str, fields: Mapping[str, Any], chosen: Chosen) -> BaseShape:
    """Return the shape with how many of each linear are not quantised, and with a quantised head and routers.

    Raises ValueError for an invalid pattern.
    """
    every = range(fields["num_hidden_layers"])
    routed = _routed_layers(family, fields) if shape.experts else ()
    dense = [layer for layer in every if layer not in routed]
    layers = {"mlp": dense, "experts": routed, "shared_experts": routed, "shared_mlp": routed}

    def with_plain(linear: Linear, own: Sequence[int]) -> Linear:
        plain = plain_layers(linear, own, chosen)
        return msgspec.structs.replace(linear, plain=linear.count * plain // max(1, len(own)))

    linears, beside = [with_plain(each, layers.get(each.within, every)) for each in shape.linears], []
    if shape.head_rows and not head_is_plain(chosen):
        beside.append(Linear("lm_head", shape.hidden, shape.vocabulary, 1, "network"))
    if routed and family in _LINEAR_ROUTERS:
        router = Linear("gate", shape.hidden, shape.experts, len(routed), "network", within="mlp")
        beside.append(with_plain(router, routed))
    return msgspec.structs.replace(shape, linears=tuple(linears), beside=tuple(beside))


def _read(family: str, fields: Mapping[str, Any]) -> BaseShape:
    hidden, layers, vocabulary = fields["hidden_size"], fields["num_hidden_layers"], fields["vocab_size"]
    heads = fields["num_attention_heads"]
    latent = family in LATENT
    attention, small = (_latent if latent else _grouped)(family, fields)
    network, routers = _networks(family, fields)
    norms = (4 if family in _FOUR_NORMS else 2) * layers * hidden + hidden
    wide_norms = layers * _head_size(fields) if family in _WIDE_NORMS else 0
    tied = fields.get("tie_word_embeddings", family in _TIED)
    slides = with_windows(family, fields).get
    return BaseShape(
        model_type=family,
        linears=(*attention, *network),
        hidden=hidden,
        vocabulary=vocabulary,
        head_rows=0 if tied else vocabulary,
        heads=heads,
        kv_heads=heads if latent else fields.get("num_key_value_heads") or heads,
        experts=_experts(fields) if routers else 0,
        small_parameters=small + routers + norms + _head_biases(family, fields),
        query_parameters=layers if family == "gpt_oss" else wide_norms,  # sinks, or norms
        key_parameters=wide_norms,
        key_elements=0 if latent else 2 * layers * _head_size(fields),
        latent_elements=_latent_elements(family, fields) if latent else 0,
        route_bytes=_route_bytes(family, fields) if routers else 0,
        context_length=_positions(family, fields),
        predicting=int(fields.get("num_nextn_predict_layers") or 0) if family in _LIKE_DEEPSEEK else 0,
        unserved=unserved_attention(fields.get),
        lean=_turns(family, fields),
        head_norms=_norms_heads(family, fields),
        output_norms=family in _GIVEN_NORMS,
        routes=_routes(family, fields) if routers else 0,
        float32_parameters=routers if family in _SHARED else 0,
        wide_in_float16=norms if family == "gpt_oss" else _weighing(attention),
        windows=windows(slides, layers),
        indexer_top_k=int(fields.get("index_topk") or _CHOSEN) if family in _INDEXED else 0,
        shared_choices=list(pairwise(_choosing(fields))).count((True, False)) if family in _INDEXED else 0,
        narrowest=narrowest(slides),
    )


def _head_biases(family: str, fields: Mapping[str, Any]) -> int:
    return int(fields["vocab_size"]) if family in _HEAD_BIASES and fields.get("mlp_bias") else 0


def _weighing(attention: Iterable[Linear]) -> int:
    """Count the parameters that weigh an indexer's heads."""
    return sum(each.parameters for each in attention if each.within == "indexer" and each.name == "weights_proj")


def _positions(family: str, fields: Mapping[str, Any]) -> int:
    """Return the most positions of a request: with YaRN the extended length, with LongRoPE the original length.

    Beyond LongRoPE's original length, all requests of a step would get the angles of the longest one. Dual chunk
    attention (Qwen's bases for a million tokens) is plain attention within its first chunk, and not computed beyond.
    """
    known = int(fields.get("max_position_embeddings") or 0)
    ropes = [(_kind(rope), rope, _first_length(rope, known)) for rope in _rotations(family, fields)]
    most = max(known, *(int((rope.get("factor") or 0) * first) for kind, rope, first in ropes if kind == "yarn"), 0)
    bounds = [most, *(first for kind, _, first in ropes if kind in _LONG_ROPES)]
    if divided := fields.get("dual_chunk_attention_config"):
        bounds.append(divided["chunk_size"] - divided["local_size"])
    return min(filter(None, bounds), default=0)


def _turns(family: str, fields: Mapping[str, Any]) -> bool:
    """Return whether own kernels support the rotary positions, as in `mint_engine.model.llama_like`."""
    ropes = _rotations(family, fields)
    return (family in _STRETCHED and bool(ropes[0].get("alpha"))) or {_kind(rope) for rope in ropes} <= _LEAN_ROPES


def _rotations(family: str, fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rotary positions' fields: one entry per kind of layer in families with two, else one for all."""
    scaling, found = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    if family not in _LAYERED or "rope_type" in found:
        every = scaling or found
        first = fields.get("original_max_position_embeddings")
        return [{**every, "original_max_position_embeddings": first} if first else every]
    return [{**(found.get("full_attention") or {}), **scaling}, found.get("sliding_attention") or {}]


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _first_length(rope: Mapping[str, Any], known: int) -> int:
    return int(rope.get("original_max_position_embeddings") or known)


def _grouped(family: str, fields: Mapping[str, Any]) -> tuple[list[Linear], int]:
    """Return grouped-query attention's linears, and the number of its head norms' parameters."""
    hidden, layers, heads = fields["hidden_size"], fields["num_hidden_layers"], fields["num_attention_heads"]
    size = _head_size(fields)
    kv = (fields.get("num_key_value_heads") or heads) * size
    biased = bool(fields.get("attention_bias", family in _BIASED)) and family not in _FUSED
    out_biased = bool(fields.get("attention_out_bias")) if family in _PLAIN_OUTPUTS else biased
    parts: dict[str, tuple[int, tuple[Of, ...]]] = {
        "q_proj": (heads * size, ("heads",)),
        "k_proj": (kv, ("kv_heads",)),
        "v_proj": (kv, ("kv_heads",)),
    }
    if family in _FUSED:
        parts = {"qkv_proj": (heads * size + 2 * kv, ("heads", "kv_heads", "kv_heads"))}
    linears = [
        Linear(name, hidden, high, layers, "attention", biased or family == "qwen2", "outputs", of)
        for name, (high, of) in parts.items()
    ]
    linears.append(Linear("o_proj", heads * size, hidden, layers, "attention", out_biased, "inputs", ("heads",)))
    return linears, layers * (2 * size if _norms_heads(family, fields) else 0)


def _norms_heads(family: str, fields: Mapping[str, Any]) -> bool:
    return family in _HEAD_NORMS or (family in _HEAD_NORMS_IF_SET and bool(fields.get("use_qk_norm")))


def _latent(family: str, fields: Mapping[str, Any]) -> tuple[list[Linear], int]:
    """Return latent attention's linears, with its indexer's if it is sparse, and the number of norm parameters."""
    hidden, layers, heads = fields["hidden_size"], fields["num_hidden_layers"], fields["num_attention_heads"]
    latent, rotated = fields["kv_lora_rank"], fields["qk_rope_head_dim"]
    query: int = fields.get("q_lora_rank") or 0
    key, value = fields["qk_nope_head_dim"], fields["v_head_dim"]
    biased = bool(fields.get("attention_bias", False))
    queries, keys = heads * (key + rotated), heads * (key + value)
    linears = [
        Linear("kv_a_proj_with_mqa", hidden, latent + rotated, layers, "attention", biased),
        Linear("kv_b_proj", latent, keys, layers, "attention", side="outputs", of=("heads",)),
        Linear("o_proj", heads * value, hidden, layers, "attention", biased, "inputs", ("heads",)),
    ]
    if query:
        linears.append(Linear("q_a_proj", hidden, query, layers, "attention", biased))
        linears.append(Linear("q_b_proj", query, queries, layers, "attention", side="outputs", of=("heads",)))
    else:
        linears.append(Linear("q_proj", hidden, queries, layers, "attention", side="outputs", of=("heads",)))
    norms = layers * (latent + query)
    if family not in _INDEXED:
        return linears, norms
    size, count, full = fields["index_head_dim"], fields["index_n_heads"], sum(_choosing(fields))
    for name, wide, high in (("wq_b", query, count * size), ("wk", hidden, size), ("weights_proj", hidden, count)):
        linears.append(Linear(name, wide, high, full, "attention", within="indexer"))
    return linears, norms + full * 2 * size


def _head_size(fields: Mapping[str, Any]) -> int:
    return int(fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"])


def _latent_elements(family: str, fields: Mapping[str, Any]) -> int:
    """Count the elements of a token's cache: in every layer a latent, a rotated key, and an indexer's key."""
    index = fields["index_head_dim"] if family in _INDEXED else 0
    return int(fields["num_hidden_layers"] * (fields["kv_lora_rank"] + fields["qk_rope_head_dim"] + index))


def _choosing(fields: Mapping[str, Any]) -> list[bool]:
    """Return which layers have their own indexer; the others share the choice of the one before (GLM-5)."""
    if kinds := fields.get("indexer_types"):
        return [each == "full" for each in kinds]
    if pattern := fields.get("index_topk_pattern"):
        return [each in ("F", "full") for each in pattern]
    often, skipped = max(fields.get("index_topk_freq") or 1, 1), fields.get("index_skip_topk_offset", 2)
    return [max(at - skipped + 1, 0) % often == 0 for at in range(int(fields["num_hidden_layers"]))]


def _networks(family: str, fields: Mapping[str, Any]) -> tuple[list[Linear], int]:
    """Return the linears of the layers' networks, dense or of experts, and the number of router parameters."""
    hidden, layers = fields["hidden_size"], fields["num_hidden_layers"]
    experts = _experts(fields)
    routed = len(_routed_layers(family, fields)) if experts else 0
    inner = fields["intermediate_size"]
    biased = bool(fields.get("mlp_bias")) and family in _NETWORK_BIASES
    found = _gated(hidden, inner, layers - routed, "network", "mlp", bias=biased, fused=family in _FUSED)
    if not routed:
        return found, 0
    small = inner if family in _INNER_OF_EXPERTS else fields["moe_intermediate_size"]
    found += _gated(hidden, small, routed * experts, "expert", "experts", bias=family == "gpt_oss")
    if shared := fields.get("n_shared_experts", _SHARED[family]) if family in _SHARED else 0:
        within = _SHARED_WITHIN.get(family, "shared_experts")
        found += _gated(hidden, small * shared, routed, "network", within, bias=biased)
    return found, routed * (experts * hidden + (experts if family in _WEIGHED_ROUTERS else 0))


def _route_bytes(family: str, fields: Mapping[str, Any]) -> int:
    """Return the bytes of one token's expert numbers: one byte each, or two with more than 256 experts."""
    return _routes(family, fields) * (1 if _experts(fields) <= 1 << 8 else 2)


def _routes(family: str, fields: Mapping[str, Any]) -> int:
    each = int(fields.get("num_experts_per_tok") or _ROUTED_TO.get(family, 8))
    return len(_routed_layers(family, fields)) * each


def _experts(fields: Mapping[str, Any]) -> int:
    return int(fields.get("num_local_experts") or fields.get("n_routed_experts") or fields.get("num_experts") or 0)


def _routed_layers(family: str, fields: Mapping[str, Any]) -> Sequence[int]:
    layers = range(fields["num_hidden_layers"])
    if kinds := fields.get("mlp_layer_types"):
        return [at for at in layers if kinds[at] == "sparse"]
    if family == "glm4_moe_lite":
        return layers[1:]  # whatever its `first_k_dense_replace`
    if family in _LIKE_DEEPSEEK:
        return layers[fields.get("first_k_dense_replace", _DENSE_FIRST.get(family, 3)) :]
    if family == "qwen3_moe":
        step, plain = fields.get("decoder_sparse_step", 1), fields.get("mlp_only_layers") or ()
        return [at for at in layers if at not in plain and (at + 1) % step == 0]
    if family == "ernie4_5_moe":
        first, last, step = (fields.get(f"moe_layer_{name}") for name in ("start_index", "end_index", "interval"))
        last = layers[-1] if last in (None, -1) else last
        return [at for at in layers if (1 if first is None else first) <= at <= last and (at + 1) % (step or 1) == 0]
    return layers


def _gated(
    hidden: int, inner: int, count: int, kind: Kind, within: str, *, bias: bool, fused: bool = False
) -> list[Linear]:
    if not count:
        return []
    into: Side = "experts" if kind == "expert" else "outputs"
    out: Side = "experts" if kind == "expert" else "inputs"
    found = [
        Linear("gate_proj", hidden, inner, count, kind, bias, into, within=within),
        Linear("up_proj", hidden, inner, count, kind, bias, into, within=within),
    ]
    if fused:
        both: tuple[Of, ...] = ("columns", "columns")
        found = [Linear("gate_up_proj", hidden, 2 * inner, count, kind, bias, into, both, within)]
    return [*found, Linear("down_proj", inner, hidden, count, kind, bias, out, within=within)]
