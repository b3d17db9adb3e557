"""Counting the parameters of vision models beside text models; every rank holds them, and no adapter targets them."""

from collections.abc import Mapping
from typing import Any

# Kimi-K2.5 and later: transformers' defaults for fields missing in config.json (which uses other names).
_KIMI: dict[str, Any] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14, "pos_emb_height": 64,
    "pos_emb_width": 64, "merge_kernel_size": [2, 2],
}  # fmt: skip
_PROJECTED = 1152
_DEFAULTS: dict[str, dict[str, Any]] = {"gemma3": {}, "kimi_k25": _KIMI}  # by the model's type
SEEING = tuple(_DEFAULTS)


def vision_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a config.json's vision fields, with defaults filled in; None for a text-only model."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        return None
    vision = config.get("vision_config")
    return _DEFAULTS[kind] | dict(vision) if isinstance(vision, Mapping) else _DEFAULTS[kind]


def vision_parameters(config: Mapping[str, Any], vision: Mapping[str, Any], text: int) -> int:
    """Count a vision model's parameters; `text` is the text model's hidden size. Raises KeyError."""
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    embedded = (3 * patch**2 + 1) * hidden
    layers = vision["num_hidden_layers"] * _layer(hidden, vision["intermediate_size"]) + 2 * hidden
    if config.get("model_type") == "gemma3":  # SigLIP
        places = (vision["image_size"] // patch) ** 2
        return int(embedded + places * hidden + layers + hidden + hidden * text)
    high, wide = vision["merge_kernel_size"]
    places, merged = vision["pos_emb_height"] * vision["pos_emb_width"], hidden * high * wide
    normed = 2 * config.get("projection_hidden_size", _PROJECTED)
    return int(embedded + places * hidden + layers + normed + (merged + 1) * merged + (merged + 1) * text)


def _layer(hidden: int, inner: int) -> int:
    """Count one layer's parameters: attention and network with biases, and two norms."""
    return 4 * (hidden + 1) * hidden + (hidden + 1) * inner + (inner + 1) * hidden + 4 * hidden
