"""Attention over trees of rows, registered with transformers under the name "mint_training".

Each tree is computed by itself, without padding, independent of the rest of the batch. A row sees its trunk and its
own past; with sliding-window attention, only the latest part of that, and with an indexer, what that chose. A tree
longer than a piece is computed some rows at a time, which the backward computes again, so memory grows with the
tree's length, not with its square. With sinks or a cap scores are in memory, so few rows see a long past at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mint_engine.model.attention import attend_rows, refuse_unserved, style_of
from mint_engine.model.attention_style import Style
from mint_engine.model.device import HOST
from mint_engine.model.paged import SCORES
from mint_engine.training.pieces import PIECE_ROWS, Tree

NAME = "mint_training"
KEPT_BYTES = 64 << 20  # of cached masks, one byte per pair of rows: 64 masks of full pieces

# Per tree: which rows each row may see [n, n] bool; None: all that it can.
Chosen = tuple[torch.Tensor | None, ...]


def register() -> None:
    """Register `attend` with transformers. No mask function is registered with it, so no mask is ever built."""
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

    Raises UnsupportedBase if the model asks for an unsupported kind of attention.
    """
    refuse_unserved(module, options, attention_mask if indices is None else None, dropout, " in training")
    style = style_of(module, query.shape[-1], scaling, sliding_window, softcap, s_aux)
    rows, parts = query.shape[2], []
    for at, tree in enumerate(trees):
        choice = indices[at] if indices is not None else None
        for some in cuts(tree.rows, _most_rows(style, query.shape[1], tree.rows)):
            part = _Part(tree, some, choice, style)
            own = slice(tree.row + some.start, tree.row + some.stop)
            past = slice(tree.row + part.first, own.stop)
            given = query[:, :, own], key[:, :, past], value[:, :, past]
            whole = len(some) == tree.rows or not torch.is_grad_enabled()
            parts.append(
                part.attend(*given)
                if whole
                else checkpoint(part.attend, *given, use_reentrant=False, preserve_rng_state=False)
            )
    done = sum(tree.rows for tree in trees)
    parts.append(query.new_zeros((1, query.shape[1], rows - done, value.shape[3])))  # padding
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None  # some models view it


def cuts(rows: int, most: int = 0) -> Iterator[range]:
    """Yield the ranges of a tree's rows that are computed together, each of at most `most` (0: a piece's) rows."""
    most = most or PIECE_ROWS
    for first in range(0, rows, most):
        yield range(first, min(first + most, rows))


def _most_rows(style: Style, heads: int, rows: int) -> int:
    """Return how many of a tree's rows attend at once, so that there are at most `SCORES` scores in memory."""
    if style.cap is None and style.sinks is None:  # torch computes it whole
        return PIECE_ROWS
    past = rows if style.window is None else min(rows, style.window + PIECE_ROWS)
    return max(1, min(PIECE_ROWS, SCORES // (heads * past)))


def first_seen(trunk: int, branches: tuple[int, ...], window: int | None, rows: range) -> int:
    """Return the first row of a tree that any of the given rows sees."""
    if window is None:
        return 0
    first, start = rows.start, 0
    for at, length in enumerate((trunk, *branches)):
        row = max(rows.start, start)
        if row < min(rows.stop, start + length):
            seen = row + 1 - window
            first = min(first, trunk + seen - start if at and seen < start else seen)
        start += length
    return max(0, first)


def visible(
    trunk: int,
    branches: tuple[int, ...],
    window: int | None = None,
    rows: range | None = None,
    device: torch.device = HOST,
    first: int = 0,
) -> torch.Tensor:
    """Return which rows, from `first` on, the given rows of a tree (default: all) see, up to their last, [n, m] bool.

    They see their past, or its latest `window` tokens, themselves included. Masks of complete trees that fit a piece
    are cached on the host, up to `KEPT_BYTES`, since layers and policies ask for the same ones again. Others are made
    on the device: of an example of 32,768 tokens, the host took 0.3 s for each layer.
    """
    every = range(trunk + sum(branches))
    rows = every if rows is None else rows
    if rows == every and not first and len(every) <= PIECE_ROWS:
        return _kept(trunk, branches, window, rows).to(device)
    return _visible(trunk, branches, window, rows, device, first)


def _visible(
    trunk: int,
    branches: tuple[int, ...],
    window: int | None,
    rows: range,
    device: torch.device = HOST,
    first: int = 0,
) -> torch.Tensor:
    """Build the mask block by block; comparing row by row would take many times its bytes."""
    found, start = torch.zeros(len(rows), rows.stop - first, dtype=torch.bool, device=device), 0
    for at, length in enumerate((trunk, *branches)):
        upper, lower = max(rows.start, start), min(rows.stop, start + length)
        if upper < lower:
            these, left = slice(upper - rows.start, lower - rows.start), max(start, first)
            own = found[these, left - first : lower - first].fill_(True).tril_(upper - left)
            if window is not None:
                own.triu_(upper - left + 1 - window)
            if at and first < trunk:
                before = found[these, : trunk - first].fill_(True)
                if window is not None:
                    before.triu_(trunk - first + upper - start + 1 - window)
        start += length
    return found


_kept = lru_cache(maxsize=KEPT_BYTES // PIECE_ROWS**2)(_visible)


@dataclass(frozen=True)
class _Part:
    """Some rows of a tree, which attend to the tree's rows from the first that they see up to the last of them."""

    tree: Tree
    rows: range
    choice: torch.Tensor | None  # [n, n] bool, of the entire tree
    style: Style

    @property
    def first(self) -> int:
        """The first of the tree's rows that these see."""
        return first_seen(self.tree.trunk, self.tree.branches, self.style.window, self.rows)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Queries [1, Q, n, D], keys [1, K, m, D] and values [1, K, m, E] of rows from the first -> [1, Q, n, E]."""
        rows, keys, values = (each.squeeze(0) for each in (query, key, value))
        return attend_rows(rows, keys, values, self._seen(query.device), self.style).unsqueeze(0)

    def _seen(self, device: torch.device) -> torch.Tensor:
        tree, rows, first = self.tree, self.rows, self.first
        seen = visible(tree.trunk, tree.branches, self.style.window, rows, device, first)
        return seen if self.choice is None else seen & self.choice[rows.start : rows.stop, first : rows.stop]
