"""Renaming the config.json fields of families that use other names to the common names."""

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
# Fields that transformers ignores for a family, and that may have another type there than in other families.
_UNREAD = {"hunyuan_v1_moe": "moe_intermediate_size"}


def with_names(family: str, fields: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Return a text model's config.json fields under the names that most families use.

    Raises UnsupportedBase about `subject` if layers differ in a field that must be the same in all of them.
    """
    found = dict(fields)
    found.pop(_UNREAD.get(family, ""), None)
    for own, names in _OTHERWISE.get(family, {}).items():
        if own in found:
            found |= dict.fromkeys(names, _one_of_all(found.pop(own), own, subject))
    # A string with one letter per layer, repeated; transformers reads it only without `layer_types`.
    if family == "exaone4" and isinstance(found.get("sliding_window_pattern"), str) and found.get("layer_types"):
        del found["sliding_window_pattern"]
    return found


def _one_of_all(value: Any, name: str, subject: str) -> Any:
    """Return the one value of a list with a value per layer. Raises UnsupportedBase if they differ."""
    if not isinstance(value, list):
        return value
    if not value or any(each != value[0] for each in value):
        message = f"has a `{name}` that differs between layers, {str(value)[:100]}, which is not supported"
        raise UnsupportedBase(subject, message)
    return value[0]
