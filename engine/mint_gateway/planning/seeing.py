"""Models for images beside those for text: their parameters, which every rank holds and no adapter targets."""

from collections.abc import Mapping
from typing import Any

# Of Kimi-K2.5 and later, as transformers has them where a config.json does not tell (its own names differ).
_KIMI: dict[str, Any] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14, "pos_emb_height": 64,
    "pos_emb_width": 64, "merge_kernel_size": [2, 2],
}  # fmt: skip
_PROJECTED = 1152
_DEFAULTS: dict[str, dict[str, Any]] = {"gemma3": {}, "kimi_k25": _KIMI}  # by the model's type


def vision_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json tells of its model for images, completed; None of a model for text alone."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        return None
    vision = config.get("vision_config")
    return _DEFAULTS[kind] | dict(vision) if isinstance(vision, Mapping) else _DEFAULTS[kind]


def vision_parameters(config: Mapping[str, Any], vision: Mapping[str, Any], text: int) -> int:
    """Of a model for images beside one for text of that hidden size. Raises KeyError for what is not told."""
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
    """Attention and network with biases, and two norms."""
    return 4 * (hidden + 1) * hidden + (hidden + 1) * inner + (inner + 1) * hidden + 4 * hidden
