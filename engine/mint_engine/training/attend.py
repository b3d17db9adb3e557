"""Attention over trees of rows, registered with transformers under the name "mint_training".

Each tree goes by itself, with no padding and whatever else is in the batch: a row sees its trunk and its own past, or
the latest of it where attention slides over a window, or what an indexer chose of it.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mint_contracts.errors import UnsupportedBase
from mint_engine.model import widened
from mint_engine.model.attention import weigh
from mint_engine.training.pieces import PIECE_ROWS, Tree

NAME = "mint_training"
KEPT_BYTES = 64 << 20  # of trees' masks, a byte for each two rows: 64 of whole pieces

_HARMLESS = frozenset(
    {"position_ids", "use_cache", "is_causal", "cache", "output_attentions", "output_router_logits", "layer_idx"}
)

Chosen = tuple[
    torch.Tensor | None, ...
]  # of each tree, which rows each row may see [n, n] bool; None: all that it can


@dataclass(frozen=True)
class _Style:
    """How scores become weights; see `mint_engine.model.attention`."""

    scale: float
    cap: float | None
    sinks: torch.Tensor | None


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    indices: Chosen | None = None,
    trees: tuple[Tree, ...] = (),
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Queries [1, Q, T, D], keys [1, K, T, D] and values [1, K, T, E] -> [1, T, Q, E].

    Raises UnsupportedBase when the model asks for something else.
    """
    _refuse(module, options, attention_mask if indices is None else None, dropout)
    style = _Style(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    rows, parts = query.shape[2], []
    for at, tree in enumerate(trees):
        span = slice(tree.row, tree.row + tree.rows)
        seen = visible(tree.trunk, tree.branches, sliding_window).to(query.device)
        choice = indices[at] if indices is not None else None
        seen = seen if choice is None else seen & choice
        parts.append(_attend_tree(query[:, :, span], key[:, :, span], value[:, :, span], seen, style))
    done = sum(tree.rows for tree in trees)
    parts.append(query.new_zeros((1, query.shape[1], rows - done, value.shape[3])))  # padding
    return torch.cat(parts, dim=2).transpose(1, 2), None


def visible(trunk: int, branches: tuple[int, ...], window: int | None = None) -> torch.Tensor:
    """What each row of a tree sees of it [n, n] bool: its past, or the latest `window` tokens, itself included.

    Those of trees that fit a piece are kept, up to `KEPT_BYTES`: layers and policies ask for the same ones again. A
    longer example's takes as much as all of these soon, and little time beside the attention that it is for.
    """
    make = _kept if trunk + sum(branches) <= PIECE_ROWS else _visible
    return make(trunk, branches, window)


def _visible(trunk: int, branches: tuple[int, ...], window: int | None) -> torch.Tensor:
    """Written block by block: compared row by row it would take many times its bytes."""
    rows, start = trunk + sum(branches), 0
    found = torch.zeros(rows, rows, dtype=torch.bool)
    for at, length in enumerate((trunk, *branches)):
        span = slice(start, start + length)
        start += length
        own, before = found[span, span].fill_(True).tril_(), found[span, :trunk]
        if window is not None:
            own.triu_(1 - window)
        if at:
            before.fill_(True)
            if window is not None:
                before.triu_(1 + trunk - window)
    return found


_kept = lru_cache(maxsize=KEPT_BYTES // PIECE_ROWS**2)(_visible)


def _refuse(module: nn.Module, options: dict[str, object], mask: torch.Tensor | None, dropout: float) -> None:
    refused = sorted(name for name, given in options.items() if given is not None and name not in _HARMLESS)
    if options.get("is_causal") is False or not getattr(module, "is_causal", True) or mask is not None or dropout:
        refused.append("an own mask or dropout")
    if refused:
        raise UnsupportedBase(
            type(module).__name__, f"needs attention with {', '.join(refused)}, which is not trained"
        )


def _attend_tree(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, style: _Style
) -> torch.Tensor:
    """Queries [1, Q, n, D], keys [1, K, n, D] and values [1, K, n, E] -> [1, Q, n, E]."""
    heads, count = key.shape[1], query.shape[2]
    if style.cap is None and style.sinks is None:
        return widened.attend(
            query, key, value, attn_mask=seen, scale=style.scale, enable_gqa=query.shape[1] != heads
        )
    grouped = query[0].reshape(heads, -1, count, query.shape[3])  # [K, Q / K, n, D]
    scores = torch.matmul(grouped, key[0].transpose(1, 2)[:, None]) * style.scale
    sinks = style.sinks.view(heads, -1, 1, 1) if style.sinks is not None else None
    weights = weigh(scores, seen, style.cap, sinks).to(value.dtype)
    return torch.matmul(weights, value[0][:, None]).view(1, -1, count, value.shape[3])
