"""How many positions a base's requests may have, by how its configuration turns queries and keys (RoPE)."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig


def positions_of(config: PreTrainedConfig) -> int:
    """So many are computed right by a text model of this configuration, whatever else is in a step; 0: no bound."""
    known = max(int(getattr(config, "max_position_embeddings", 0) or 0), *_stretched(config), 0)
    alike = alike_positions(config)
    return known if alike is None else min(known, alike) if known else alike


def alike_positions(config: PreTrainedConfig) -> int | None:
    """Up to how many positions a token's turn depends on its own alone; None: always.

    LongRoPE (arXiv 2402.13753) has angles for short sequences and others for long ones, and transformers takes one of
    the two for all tokens of a pass, by the last position among them: of a step, by the longest of its requests.
    """
    bounds = [
        int(each.get("original_max_position_embeddings") or config.max_position_embeddings)
        for each in _rotations(config)
        if each.get("rope_type") == "longrope"
    ]
    return min(bounds, default=None)


def _stretched(config: PreTrainedConfig) -> list[int]:
    """What YaRN (arXiv 2309.00071) makes of a length: a base may be published with the one before."""
    return [
        int(each["factor"] * each["original_max_position_embeddings"])
        for each in _rotations(config)
        if each.get("rope_type") == "yarn" and each.get("factor")
    ]


def _rotations(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """What is told of each kind of layers, or of all in one."""
    ropes = getattr(config, "rope_parameters", None) or {}
    yield from ((ropes,) if "rope_type" in ropes else (each for each in ropes.values() if isinstance(each, dict)))
