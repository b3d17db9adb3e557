"""How a configuration rotates queries and keys (RoPE), and how many positions requests may have for that."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from mint_contracts.errors import UnsupportedBase


def positions_of(config: PreTrainedConfig) -> int:
    """How many positions a text model computes correctly whatever else is in a step; 0: no bound."""
    known = max(int(getattr(config, "max_position_embeddings", 0) or 0), *_stretched(config), 0)
    bounds = [each for each in (known, alike_positions(config), _undivided(config)) if each]
    return min(bounds, default=0)


def alike_positions(config: PreTrainedConfig) -> int | None:
    """Up to how many positions a token's rotation depends only on its own position; None: always.

    LongRoPE (arXiv 2402.13753) has angles for short sequences and others for long ones; transformers applies one of
    the two to all tokens of a pass, by the last position among them: in a step, by the longest of its requests.
    """
    bounds = [
        int(each.get("original_max_position_embeddings") or config.max_position_embeddings)
        for each in _rotations(config)
        if each.get("rope_type") == "longrope"
    ]
    return min(bounds, default=None)


def check_theta(told: Mapping[str, Any], subject: str) -> None:
    """Raise UnsupportedBase for a config.json whose `rope_scaling` would hide the `rope_theta` that it gives.

    transformers 5 saves that in `rope_parameters`, and does not read these beside the older field, which the model
    cards of Qwen's bases have people add: it would rotate positions by its family's default.
    """
    for each in (told, told.get("text_config")):
        if not isinstance(each, Mapping):
            continue
        scaling, saved = each.get("rope_scaling"), each.get("rope_parameters")
        if not isinstance(scaling, Mapping) or not isinstance(saved, Mapping) or not scaling:
            continue
        if "rope_theta" in saved and "rope_theta" not in {*each, *scaling}:
            message = (
                "has rope_scaling beside rope_parameters in its config.json, which hides the latter's rope_theta"
            )
            raise UnsupportedBase(subject, f"{message}; move the fields of rope_scaling into rope_parameters")


def with_attention_factors(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration with YaRN's `attn_factor` in a field that transformers reads; it ignores that one.

    As in vLLM and SGLang, it multiplies the factor of queries and keys that follows from the stretching, which
    DeepSeek-R1-0528-Qwen3-8B so makes 1.
    """
    for each in _rotations(config.get_text_config()):
        if each.get("rope_type") == "yarn" and each.get("attn_factor") and each.get("attention_factor") is None:
            stretched, own, shared = float(each.get("factor") or 1), each.get("mscale"), each.get("mscale_all_dim")
            usual = _magnitude(stretched)
            if own and shared:
                usual = _magnitude(stretched, own) / _magnitude(stretched, shared)
            each["attention_factor"] = float(each["attn_factor"]) * usual
    return config


def _magnitude(stretched: float, scale: float = 1.0) -> float:
    """YaRN's factor of queries and keys (arXiv 2309.00071, section 3.4)."""
    return 0.1 * scale * math.log(stretched) + 1 if stretched > 1 else 1.0


def _undivided(config: PreTrainedConfig) -> int | None:
    """Up to how many positions dual chunk attention (arXiv 2402.17463) is plain attention; None: always.

    Qwen's bases for a million tokens have it. transformers does not compute it and ignores that field.
    """
    divided = getattr(config, "dual_chunk_attention_config", None)
    return int(divided["chunk_size"]) - int(divided["local_size"]) if divided else None


def _stretched(config: PreTrainedConfig) -> list[int]:
    """Lengths after YaRN's stretching (arXiv 2309.00071): a base may be published with the one before it."""
    return [
        int(each["factor"] * each["original_max_position_embeddings"])
        for each in _rotations(config)
        if each.get("rope_type") == "yarn" and each.get("factor")
    ]


def _rotations(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield the rotary parameters of each kind of layers, or of all."""
    ropes = getattr(config, "rope_parameters", None) or {}
    yield from ((ropes,) if "rope_type" in ropes else (each for each in ropes.values() if isinstance(each, dict)))
