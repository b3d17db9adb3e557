"""Validating the fields of a config.json that a plan reads: these files are also written by hand."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from mint_contracts.base_sizes import odd_size
from mint_contracts.errors import UnsupportedBase

_MOST = 1 << 31  # far above any base's numbers

Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Factor = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]


class _Rope(msgspec.Struct, frozen=True):
    """Rotary positions, for all layers or for each of the two kinds of layers that some families have."""

    rope_type: str | None = None
    type: str | None = None
    factor: Factor | None = None
    original_max_position_embeddings: Count | None = None
    full_attention: "_Rope | None" = None
    sliding_attention: "_Rope | None" = None


class _Chunks(msgspec.Struct, frozen=True):
    """Dual chunk attention."""

    chunk_size: Count
    local_size: Count


class _Text(msgspec.Struct, frozen=True):
    """A text model's fields, whose numbers `odd_size` has accepted.

    A field that its family needs and that is missing is reported where it is read.
    """

    hidden_size: int | UnsetType = UNSET
    num_hidden_layers: int | UnsetType = UNSET
    vocab_size: int | UnsetType = UNSET
    num_attention_heads: int | UnsetType = UNSET
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | UnsetType = UNSET
    max_position_embeddings: int | None = None
    original_max_position_embeddings: int | None = None
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | UnsetType = UNSET
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    attention_out_bias: bool | None = None
    use_qk_norm: bool | None = None
    mlp_bias: bool | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    dual_chunk_attention_config: _Chunks | None = None
    # latent attention, and its indexers
    kv_lora_rank: int | UnsetType = UNSET
    q_lora_rank: int | None = None
    qk_rope_head_dim: int | UnsetType = UNSET
    qk_nope_head_dim: int | UnsetType = UNSET
    v_head_dim: int | UnsetType = UNSET
    index_head_dim: int | UnsetType = UNSET
    index_n_heads: int | UnsetType = UNSET
    index_topk: int | None = None
    indexer_types: list[str] | None = None
    index_topk_pattern: str | list[str] | None = None
    index_topk_freq: int | None = None
    index_skip_topk_offset: int | UnsetType = UNSET
    # routed experts
    num_local_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts: int | None = None
    n_shared_experts: int | None = None
    moe_intermediate_size: int | UnsetType = UNSET
    mlp_layer_types: list[str] | None = None
    mlp_only_layers: list[int] | None = None
    first_k_dense_replace: int | UnsetType = UNSET
    decoder_sparse_step: int | UnsetType = UNSET
    moe_layer_start_index: int | None = None
    moe_layer_end_index: int | None = None
    moe_layer_interval: int | None = None
    num_experts_per_tok: int | None = None
    num_nextn_predict_layers: int | None = None
    # attention that engines refuse, see `mint_contracts.attention`
    layer_types: list[str] | None = None
    attention_chunk_size: int | None = None
    use_bidirectional_attention: bool | str | None = None
    num_kv_shared_layers: int | None = None

    def __post_init__(self) -> None:
        """Check that lists with a value per layer cover all layers."""
        kinds, turned, layers = self.mlp_layer_types, self.no_rope_layers, self.num_hidden_layers
        if kinds and isinstance(layers, int) and len(kinds) != layers:
            raise ValueError(f"`mlp_layer_types` names {len(kinds)} layers where `num_hidden_layers` is {layers}")
        if turned and isinstance(layers, int) and len(turned) < layers:
            raise ValueError(f"`no_rope_layers` names {len(turned)} layers where `num_hidden_layers` is {layers}")


class _Seeing(msgspec.Struct, frozen=True):
    """A vision model's fields."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    patch_size: int
    image_size: int | UnsetType = UNSET
    pos_emb_height: int | UnsetType = UNSET
    pos_emb_width: int | UnsetType = UNSET
    merge_kernel_size: tuple[Count, Count] | UnsetType = UNSET


class _Nested(msgspec.Struct, frozen=True):
    text_config: _Text


class _Both(_Nested, frozen=True):
    vision_config: _Seeing
    projection_hidden_size: int | UnsetType = UNSET


def text_of(config: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
    """Return the part of a config.json about the text model. Raises UnsupportedBase about `subject` if invalid."""
    text = config.get("text_config")
    if text is None:
        return config
    if not isinstance(text, Mapping):
        raise garbled(subject, f"Expected `object`, got {str(text)[:40]!r} - at `$.text_config`")
    return text


def check_fields(
    text: Mapping[str, Any], config: Mapping[str, Any], vision: Mapping[str, Any] | None, subject: str
) -> None:
    """Raise UnsupportedBase unless the fields of the text model, and of a vision model beside it, are valid.

    `text` and `vision` are those parts of `config`, or `config` itself, with defaults filled in.
    """
    nested = vision is not None or config.get("text_config") is not None
    completed = {**config, "text_config": text} if nested else text
    if vision is not None:
        completed = {**completed, "vision_config": vision}
    if odd := odd_size(completed):
        raise garbled(subject, odd)
    try:
        msgspec.convert(completed, _Both if vision is not None else _Nested if nested else _Text)
    except msgspec.ValidationError as error:
        raise garbled(subject, str(error)) from None


def garbled(subject: str, what: str) -> UnsupportedBase:
    """Return the error for a config.json with missing or invalid values."""
    return UnsupportedBase(subject, f"has missing or invalid values: {what}; give the base's own config.json")
