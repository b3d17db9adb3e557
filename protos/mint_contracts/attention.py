"""The kinds of attention that are served, read from a base's configuration; used to load a base and to plan one.

The past must be a list of tokens in which each token attends to all earlier ones or to the latest ones.
"""

from collections.abc import Callable
from typing import Any

# The served ones of the layer types that transformers names in a configuration.
_SLIDING = "sliding_attention"
_SERVED = frozenset({"full_attention", _SLIDING, "indexed_attention"})
# Model types whose layers all use `sliding_window`, though the configuration has no `layer_types`.
_ALL_SLIDE = frozenset(
    {"minimax", "ministral3", "mistral", "mixtral", "olmoe", "phi3", "phimoe", "qwen3_moe", "starcoder2"}
)


def unserved_attention(field: Callable[[str], Any]) -> str:
    """Return which parts of a text model's configuration are not served, or "". `field` returns a field or None."""
    kinds = set(field("layer_types") or ()) - _SERVED
    reasons = {
        f"has layers of {', '.join(sorted(kinds))}": bool(kinds),
        "attends in chunks of its context": bool(field("attention_chunk_size")),
        "attends to later tokens too": bool(field("use_bidirectional_attention")),
        "shares keys and values between layers": bool(field("num_kv_shared_layers")),
    }
    found = " and ".join(reason for reason, holds in reasons.items() if holds)
    return f"{found}, which is not served" if found else ""


def windows(field: Callable[[str], Any], layers: int) -> tuple[int | None, ...]:
    """Return how many of the latest tokens each layer attends to, the newest included; None means all.

    A layer whose window the configuration does not state clearly counts as attending to all.
    """
    window, kinds = field("sliding_window"), field("layer_types")
    if not window:
        return (None,) * layers
    if kinds and len(kinds) == layers:
        return tuple(int(window) if kind == _SLIDING else None for kind in kinds)
    return (int(window) if not kinds and field("model_type") in _ALL_SLIDE else None,) * layers


def narrowest(field: Callable[[str], Any]) -> int | None:
    """Return the smallest number of latest tokens that any layer attends to, the newest included; None means all.

    Requests of at most this length are not affected by any window. A configuration that is unclear counts as sliding.
    """
    window, kinds = field("sliding_window"), field("layer_types")
    if not window or (kinds and _SLIDING not in kinds and field("model_type") not in _ALL_SLIDE):
        return None
    return int(window)
