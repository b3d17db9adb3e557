"""Which layers have sliding-window attention, by family, with transformers' defaults for missing fields."""

from collections.abc import Mapping, Sequence
from typing import Any

_WINDOWS = {
    "dots1": 4096, "exaone4": 4096, "gemma2": 4096, "gemma3_text": 4096, "gpt_oss": 128, "mistral": 4096,
    "olmo3": 4096, "qwen2": 4096, "qwen3": 4096, "qwen3_moe": 4096,
}  # fmt: skip
_EVERY = {"exaone4": 4, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}  # each n-th layer is full attention
_IF_ASKED = frozenset({"qwen2", "qwen3", "qwen3_moe"})
_WITH_PATTERN = frozenset({"exaone4", "gemma3_text"})
_FROM_ON = {"dots1": 62, "qwen2": 28, "qwen3": 28}  # default number of first layers with full attention
_UNTURNED = frozenset({"smollm3"})  # if enabled, layers without rotary positions slide
_UNTURNED_EVERY = 4

_SEES_ALL, _SLIDES = "full_attention", "sliding_attention"


def with_windows(family: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json's fields with `sliding_window` and `layer_types` as in transformers' configuration."""
    window = fields.get("sliding_window", _WINDOWS.get(family))
    if family in _IF_ASKED and not fields.get("use_sliding_window"):
        window = None
    kinds = fields.get("layer_types")
    return {**fields, "sliding_window": window, "layer_types": _kinds(family, fields) if kinds is None else kinds}


def _kinds(family: str, fields: Mapping[str, Any]) -> Sequence[str] | None:
    """Return each layer's kind of attention if there is a window; None if a window applies to all layers."""
    layers = range(int(fields["num_hidden_layers"]))
    if family in _EVERY:
        often = (fields.get("sliding_window_pattern") if family in _WITH_PATTERN else None) or _EVERY[family]
        return [_SLIDES if (at + 1) % often else _SEES_ALL for at in layers]
    if family in _FROM_ON:
        first = fields.get("max_window_layers", _FROM_ON[family])
        return [_SLIDES if at >= first else _SEES_ALL for at in layers]
    if family in _UNTURNED and fields.get("use_sliding_window"):
        often = fields.get("no_rope_layer_interval") or _UNTURNED_EVERY
        turned = fields.get("no_rope_layers") or [(at + 1) % often for at in layers]
        return [_SEES_ALL if turned[at] else _SLIDES for at in layers]
    return None
