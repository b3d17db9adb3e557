"""Limits on the sizes and counts in a base's config.json; used to load a base and to plan one.

They are checked before anything is allocated or looped over by them: people write these files by hand, too, and
nothing vouches for their content. A value that is not a number is left to the code that reads the field.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

_LAYERS = range(1, (1 << 12) + 1)  # code loops over layers; published bases have up to about 130
_PARTS = range(1, (1 << 16) + 1)  # heads and experts, whose numbers fit two bytes
_WIDTHS = range(1, (1 << 24) + 1)  # vector widths and vocabulary sizes
_POSITIONS = range(1, (1 << 31) + 1)
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")


def _or_none(sizes: range) -> range:
    return range(sizes.stop)


_ALLOWED: dict[str, range] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "depth"), _LAYERS),
    "num_nextn_predict_layers": _or_none(_LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "index_n_heads"), _PARTS),
    **dict.fromkeys((*_EXPERTS, *_CHOSEN, "n_shared_experts", "moe_num_shared_experts"), _or_none(_PARTS)),
    **dict.fromkeys(("n_group", "topk_group"), _PARTS),
    **dict.fromkeys(("vocab_size", "hidden_size", "n_embd", "d_model", "head_dim", "intermediate_size"), _WIDTHS),
    **dict.fromkeys(("moe_intermediate_size", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), _WIDTHS),
    **dict.fromkeys(("q_lora_rank", "shared_expert_intermediate_size"), _or_none(_WIDTHS)),
    **dict.fromkeys(("v_head_dim", "index_head_dim", "patch_size", "image_size"), _WIDTHS),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width", "projection_hidden_size"), _WIDTHS),
    **dict.fromkeys(("index_topk", "decoder_sparse_step"), _POSITIONS),
    **dict.fromkeys(
        ("max_position_embeddings", "original_max_position_embeddings", "sliding_window", "first_k_dense_replace"),
        _or_none(_POSITIONS),
    ),
}


def odd_size(config: Mapping[str, Any], *, own_heads: bool = False) -> str:
    """Return the first value that no base can have, with what is allowed instead; "" if all values are possible.

    With `own_heads` the model family has a default head size; otherwise the heads divide the hidden size.
    """
    return next(chain(_out_of_range(config, ""), _at_odds(config, own_heads)), "")


def _out_of_range(config: Mapping[str, Any], within: str) -> Iterator[str]:
    """Yield the sizes that are out of range, those of nested models (for images, say) included."""
    for name, value in config.items():
        if name in _ALLOWED and isinstance(value, int | float):
            least, most = _ALLOWED[name].start, _ALLOWED[name].stop - 1
            if not least <= value <= most:  # NaN fails this as well
                yield f"`{within}{name}` is {str(value)[:40]}; it may be from {least} to {most}"
        if name.endswith("_config") and isinstance(value, Mapping) and not within:
            yield from _out_of_range(value, f"{name}.")


def _at_odds(config: Mapping[str, Any], own_heads: bool) -> Iterator[str]:
    """Yield the fields of the text model that contradict each other although each is in its range."""
    nested = config.get("text_config")
    text, within = (nested, "text_config.") if isinstance(nested, Mapping) else (config, "")

    def number(name: str) -> int:
        value = text.get(name)
        return value if isinstance(value, int) else 0

    heads, latent = number("num_attention_heads"), number("kv_lora_rank")
    if heads and not latent:
        hidden, shared = number("hidden_size"), number("num_key_value_heads")
        if hidden % heads and not own_heads and not number("head_dim"):
            yield (
                f"`{within}hidden_size` is {hidden}; without a `head_dim` it must be a multiple of "
                f"`num_attention_heads`, which is {heads}"
            )
        if shared and heads % shared:
            yield f"`{within}num_key_value_heads` is {shared}; it must divide `num_attention_heads`, which is {heads}"
    experts = next((name for name in _EXPERTS if number(name)), "")
    if not experts:
        return
    of = number(experts)
    for name in _CHOSEN:
        chosen = text.get(name)
        if isinstance(chosen, int) and not 0 < chosen <= of:
            yield f"`{within}{name}` is {chosen}; it may be from 1 to `{experts}`, which is {of}"
    groups, chosen_groups = number("n_group"), number("topk_group")
    if groups and of % groups:
        yield f"`{within}n_group` is {groups}; it must divide `{experts}`, which is {of}"
    if groups and chosen_groups > groups:
        yield f"`{within}topk_group` is {chosen_groups}; it may be from 1 to `n_group`, which is {groups}"
