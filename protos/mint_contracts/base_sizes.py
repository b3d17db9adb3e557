"""Which sizes and counts a base's config.json may tell, for who loads a base and who plans one.

Before anything is made, or gone through, by them: people write these files, too, and nothing vouches for them. What
is not a whole number is left to who reads the field.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

_LAYERS = range(1, (1 << 12) + 1)  # gone through one by one; of published bases some 130
_PARTS = range(1, (1 << 16) + 1)  # heads, and experts, whose numbers have two bytes at most
_WIDTHS = range(1, (1 << 24) + 1)  # of vectors and vocabularies
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
    "q_lora_rank": _or_none(_WIDTHS),
    **dict.fromkeys(("v_head_dim", "index_head_dim", "patch_size", "image_size"), _WIDTHS),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width", "projection_hidden_size"), _WIDTHS),
    **dict.fromkeys(("index_topk", "decoder_sparse_step"), _POSITIONS),
    **dict.fromkeys(
        ("max_position_embeddings", "original_max_position_embeddings", "sliding_window", "first_k_dense_replace"),
        _or_none(_POSITIONS),
    ),
}


def odd_size(config: Mapping[str, Any], *, own_heads: bool = False) -> str:
    """What of a configuration no base has, with what is allowed instead; "" where all can be.

    With `own_heads` its family has a size of heads where none is told; else they share the hidden size.
    """
    return next(chain(_out_of_range(config, ""), _at_odds(config, own_heads)), "")


def _out_of_range(config: Mapping[str, Any], within: str) -> Iterator[str]:
    """Also of models within the model, as for images."""
    for name, value in config.items():
        if name in _ALLOWED and isinstance(value, int | float):
            least, most = _ALLOWED[name].start, _ALLOWED[name].stop - 1
            if not least <= value <= most:  # as it is for what is no number, too
                yield f"`{within}{name}` is {str(value)[:40]}; it may be from {least} to {most}"
        if name.endswith("_config") and isinstance(value, Mapping) and not within:
            yield from _out_of_range(value, f"{name}.")


def _at_odds(config: Mapping[str, Any], own_heads: bool) -> Iterator[str]:
    """What of a model for text does not go together, where each is in its range."""
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
