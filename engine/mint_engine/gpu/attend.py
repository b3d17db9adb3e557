"""Attention over the paged cache: keys and values are read where they lie, and nothing is as wide as all scores.

A program computes the query heads of one key head, for one token of a decoding request or some of a prompt's chunk,
with a running softmax (FlashAttention-2, arXiv 2307.08691). Long pasts of decoding requests are split among programs,
at the same tokens whatever else is in the batch, and combined in order (Flash-Decoding).

Letters in shapes: T rows, Q query heads, K key heads, D head size, P pages, n work items, m decoding requests.
"""

from dataclasses import dataclass

import torch
from triton import next_power_of_2

from mint_engine.gpu.attend_kernels import attend, combine
from mint_engine.model.attention_style import Style

TOKENS = 64  # of a chunk, at most, in one item of work
ROWS = 64  # most of a program: one for each token of a chunk and each query head of a key head
_QUERIES = 1 << 14  # numbers of a program's queries, at most: they stay in a processor's own memory
FEWEST = 16  # rows that tensor cores multiply
SPLIT = 512  # tokens of a decoding request's past that one program reads
_STEP_BYTES = 1 << 14  # of keys that a program reads at once


@dataclass(frozen=True)
class Work:
    """One step's work in layers with the same pages.

    Items [n, 5] int64: first row, tokens, position of the first, index of its pages in `tables`, and which split of
    its past it reads. So a long past costs other requests nothing.
    """

    chunks: torch.Tensor  # of at most `TOKENS` tokens each, which read all of their past
    decodes: torch.Tensor  # of one token each
    decoding: torch.Tensor  # [m, 3] int64: a decoding request's row, its first item, how many it has
    tables: torch.Tensor  # int64

    def attend(self, query: torch.Tensor, out: torch.Tensor, pool: torch.Tensor, style: Style) -> None:
        """Attention of query [Q, T, D] over a layer's pages [P, 2, K, page, D], into out [Q, T, D].

        Each row sees its own past and itself, which are in the pages already.
        """
        group = next_power_of_2(query.shape[0] // pool.shape[2])
        if self.chunks.shape[0]:
            rows = max(FEWEST, min(ROWS, _QUERIES // next_power_of_2(query.shape[2])))
            self._launch(query, out, pool, style, self.chunks, tokens=max(1, rows // group), group=group)
        if self.decodes.shape[0]:
            self._launch(query, out, pool, style, self.decodes, tokens=1, group=max(group, FEWEST), most=1)

    def _launch(
        self, query: torch.Tensor, out: torch.Tensor, pool: torch.Tensor, style: Style, items: torch.Tensor, *,
        tokens: int, group: int, most: int = TOKENS,
    ) -> None:  # fmt: skip
        (queries, _, size), (keys, page), count = query.shape, pool.shape[2:4], items.shape[0]
        padded, programs, requests = max(16, next_power_of_2(size)), -(-most // tokens), self.decoding.shape[0]
        split = most == 1 and count > requests
        partial, weights = parts(count, queries, size, out) if split else (out, out)  # not read
        sinks = out if style.sinks is None else style.sinks
        sunk = style.sinks is not None
        attend[count * programs, keys](
            query, query.stride(0), query.stride(1), out, out.stride(0), out.stride(1), pool, items, self.tables,
            sinks, partial, weights, style.scale, style.cap or 1.0, style.window or 1, keys,
            queries=queries, group=queries // keys, size=size, tokens=tokens, programs=programs, padded_group=group,
            padded_size=padded, page_tokens=page, step=step(padded * query.element_size(), _STEP_BYTES),
            split_tokens=SPLIT, capped=style.cap is not None, windowed=style.window is not None, sunk=sunk,
            split=split,
        )  # fmt: skip
        if split:
            combine[requests, queries](
                out, out.stride(0), out.stride(1), self.decoding, sinks, partial, weights, queries=queries, size=size,
                padded_size=padded, sunk=sunk,
            )  # fmt: skip


def splits_of(position: int) -> int:
    """Return among how many programs the past of a decoding request is split, if its token has that position."""
    return 1 + position // SPLIT


def parts(items: int, queries: int, size: int, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room for what splits leave to be combined into `out`: weighted sums, and peaks and weights."""
    sums = torch.empty((items, queries, size), dtype=torch.float32, device=out.device)
    return sums, torch.empty((items, queries, 2), dtype=torch.float32, device=out.device)


def step(row_bytes: int, most_bytes: int) -> int:
    """Return how many tokens of a past are read at once, of `row_bytes` each and about `most_bytes` together."""
    return max(16, min(64, most_bytes // row_bytes))
