"""Which attention is served, by what a base's configuration says of it: for who loads a base, and who plans one.

The past must be a list of tokens, of which each looks at all earlier ones or at the latest.
"""

from collections.abc import Callable
from typing import Any

# Kinds of layers that transformers names in a configuration, and that are served.
_SERVED = frozenset({"full_attention", "sliding_attention", "indexed_attention"})


def unserved_attention(told: Callable[[str], Any]) -> str:
    """What of a text model's configuration is not served; "" where all is. `told` gives its fields, or None."""
    kinds = set(told("layer_types") or ()) - _SERVED
    reasons = {
        f"has layers of {', '.join(sorted(kinds))}": bool(kinds),
        "attends in chunks of its context": bool(told("attention_chunk_size")),
        "attends to later tokens too": bool(told("use_bidirectional_attention")),
        "shares keys and values between layers": bool(told("num_kv_shared_layers")),
    }
    found = " and ".join(reason for reason, holds in reasons.items() if holds)
    return f"{found}, which is not served" if found else ""
