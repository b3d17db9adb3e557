"""Which attention is served, by what a base's configuration says of it: for who loads a base, and who plans one.

The past must be a list of tokens, of which each looks at all earlier ones or at the latest.
"""

from collections.abc import Callable
from typing import Any

# Kinds of layers that transformers names in a configuration, and that are served.
_SLIDING = "sliding_attention"
_SERVED = frozenset({"full_attention", _SLIDING, "indexed_attention"})
# Model types whose layers all slide over `sliding_window`, without saying so layer by layer.
_ALL_SLIDE = frozenset(
    {"minimax", "ministral3", "mistral", "mixtral", "olmoe", "phi3", "phimoe", "qwen3_moe", "starcoder2"}
)


def unserved_attention(field: Callable[[str], Any]) -> str:
    """What of a text model's configuration is not served; "" where all is. `field` gives its fields, or None."""
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
    """How many of the latest tokens each layer's attention sees, the newest included; None: all.

    What a configuration does not tell plainly counts as all.
    """
    window, kinds = field("sliding_window"), field("layer_types")
    if not window:
        return (None,) * layers
    if kinds and len(kinds) == layers:
        return tuple(int(window) if kind == _SLIDING else None for kind in kinds)
    return (int(window) if not kinds and field("model_type") in _ALL_SLIDE else None,) * layers


def narrowest(field: Callable[[str], Any]) -> int | None:
    """The fewest of the latest tokens that any layer's attention sees, the newest included; None: all.

    No window narrows requests that are as long at most. What a configuration does not tell plainly counts as sliding.
    """
    window, kinds = field("sliding_window"), field("layer_types")
    if not window or (kinds and _SLIDING not in kinds and field("model_type") not in _ALL_SLIDE):
        return None
    return int(window)
