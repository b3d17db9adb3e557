"""Attention over trees of rows, registered with transformers under the name "mint_training".

Each tree goes by itself, with no padding and whatever else is in the batch: a row sees its trunk and its own past.
"""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mint_contracts.errors import UnsupportedBase
from mint_engine.training.pieces import Tree

NAME = "mint_training"

_HARMLESS = frozenset({"position_ids", "use_cache", "is_causal", "cache", "output_attentions", "layer_idx"})


def register() -> None:
    """Make it known to transformers. No mask is registered beside it, and so none is ever built."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    trees: tuple[Tree, ...] = (),
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Queries [1, Q, T, D], keys [1, K, T, D] and values [1, K, T, E] -> [1, T, Q, E].

    Raises UnsupportedBase when the model asks for something else than causal attention over all of the past.
    """
    refused = sorted(name for name, given in options.items() if given is not None and name not in _HARMLESS)
    if options.get("is_causal") is False or attention_mask is not None or dropout:
        refused.append("an own mask or dropout")
    if refused:
        raise UnsupportedBase(
            type(module).__name__, f"needs attention with {', '.join(refused)}, which is not trained"
        )
    rows, parts = query.shape[2], []
    for tree in trees:
        span = slice(tree.row, tree.row + tree.rows)
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                attn_mask=visible(tree.trunk, tree.branches).to(query.device),
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    done = sum(tree.rows for tree in trees)
    parts.append(query.new_zeros((1, query.shape[1], rows - done, value.shape[3])))  # padding
    return torch.cat(parts, dim=2).transpose(1, 2), None


@lru_cache(maxsize=64)
def visible(trunk: int, branches: tuple[int, ...]) -> torch.Tensor:
    """What each row of a tree sees of it [n, n] bool."""
    count = trunk + sum(branches)
    branch = torch.cat([torch.full((length,), at) for at, length in enumerate((trunk, *branches))])
    rows = torch.arange(count)
    past = rows[:, None] >= rows[None]
    return past & ((branch[:, None] == branch[None]) | (branch[None] == 0))
