"""What families call otherwise than the others in a config.json, under the names that the others have for it."""

from collections.abc import Mapping
from typing import Any

from mint_contracts.errors import UnsupportedBase

_ERNIE: dict[str, tuple[str, ...]] = {"use_bias": ("attention_bias", "mlp_bias")}
_OTHERWISE: dict[str, dict[str, tuple[str, ...]]] = {
    "ernie4_5": _ERNIE,
    "ernie4_5_moe": _ERNIE
    | {
        "moe_k": ("num_experts_per_tok",),
        "moe_num_experts": ("num_experts",),
        "moe_num_shared_experts": ("n_shared_experts",),
    },
    "hunyuan_v1_moe": {"moe_topk": ("num_experts_per_tok",)},
}
# Of a family's config.json, what transformers does not read, and others' has in other kinds.
_UNREAD = {"hunyuan_v1_moe": "moe_intermediate_size"}


def with_names(family: str, fields: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """What a config.json tells of a model for text, in the names that most families have.

    Raises UnsupportedBase, which names the file so, where layers differ in what is one number for engines.
    """
    found = dict(fields)
    found.pop(_UNREAD.get(family, ""), None)
    for own, names in _OTHERWISE.get(family, {}).items():
        if own in found:
            found |= dict.fromkeys(names, _one_of_all(found.pop(own), own, subject))
    # In letters, one a layer, and over again; transformers reads them only where it is not told layer by layer.
    if family == "exaone4" and isinstance(found.get("sliding_window_pattern"), str) and found.get("layer_types"):
        del found["sliding_window_pattern"]
    return found


def _one_of_all(value: Any, name: str, subject: str) -> Any:
    """What a list tells of each layer, which is the same for all."""
    if not isinstance(value, list):
        return value
    if not value or any(each != value[0] for each in value):
        message = f"has a `{name}` that differs between layers, {str(value)[:100]}, which is not supported"
        raise UnsupportedBase(subject, message)
    return value[0]
