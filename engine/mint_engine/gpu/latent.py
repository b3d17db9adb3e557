"""Latent attention over the paged cache: a token's latent, which all heads share, is read where it lies.

Queries come absorbed, so that one latent is key and value of all heads (see `mint_engine.model.latent`). A program
computes some heads of one token or of several; pasts are split and combined as in `mint_engine.gpu.attend`. If
attention is sparse (DeepSeek-V3.2, GLM-5), the indexer's scores are computed over its keys in the same pages, and a
program reads only the tokens that were chosen for its row.

Letters in shapes: n rows, Q heads, C latent size, E rotated size, P pages, W width of a token's row in the cache,
J indexer heads, D their size, k tokens that are chosen of a past.
"""

from dataclasses import dataclass

import torch
from triton import next_power_of_2

from mint_engine.gpu import attend
from mint_engine.gpu.attend import FEWEST, ROWS
from mint_engine.gpu.attend_kernels import combine
from mint_engine.gpu.latent_kernels import attend_latents, score

_QUERY_BYTES = 1 << 15  # of a program's absorbed queries, at most: they and a step's latents stay in its own memory
_STEP_BYTES = 1 << 15  # of latents that a program reads at once
_WARPS = 8  # of a program: its sums, as many as a latent has numbers for each row, are in their registers
_SCORED = 64  # tokens of a past that a program scores
# Of a decoding request's past: what splits leave is as wide as all heads' latents, a quarter of a megabyte with 128.
MOST_SPLITS = 32


@dataclass(frozen=True)
class LatentWork:
    """One step's work in layers of latent attention, but for chunks that are expanded.

    Items, `decoding` and `tables` are as in `mint_engine.gpu.attend.Work`, but rows are counted among these n.
    """

    rows: torch.Tensor | None  # [n] int64, of the step; None: all
    slots: tuple[int, ...]  # of the rows
    chunks: torch.Tensor
    tokens: int  # of the longest item of chunks
    decodes: torch.Tensor
    decoding: torch.Tensor
    tables: torch.Tensor
    pasts: torch.Tensor  # [n, 2] int64: a row's position, and where its pages begin in `tables`
    # Where rows with similar pasts start and stop, and the longest of these pasts, the row included; 0 if they attend
    # to all that they see. Empty if all rows do.
    runs: tuple[tuple[int, int, int], ...]

    def attend(
        self, query: torch.Tensor, pool: torch.Tensor, latent: int, scale: float, chosen: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of absorbed queries [n, Q, C + E] over a layer's pages [P, page, W] -> [n, Q, C].

        Each row sees its own past and itself, or of these the positions `chosen` [n, k] int32: as many as it sees,
        but at most k, in order.
        """
        out = query.new_empty((*query.shape[:2], latent))
        padded = max(16, next_power_of_2(latent))
        rows = max(FEWEST, min(ROWS, _QUERY_BYTES // (padded * query.element_size())))
        group = min(next_power_of_2(query.shape[1]), rows)
        for items, most in ((self.chunks, self.tokens), (self.decodes, 1)):
            if items.shape[0]:
                tokens = rows // group if chosen is None and most > 1 else 1
                together = max(group, FEWEST // tokens)
                self._launch(query, out, pool, scale, chosen, items, most=most, tokens=tokens, group=together)
        return out

    def _launch(
        self, query: torch.Tensor, out: torch.Tensor, pool: torch.Tensor, scale: float, chosen: torch.Tensor | None,
        items: torch.Tensor, *, most: int, tokens: int, group: int,
    ) -> None:  # fmt: skip
        (_, queries, size), latent, (page, width), count = query.shape, out.shape[2], pool.shape[1:], items.shape[0]
        padded, programs, requests = max(16, next_power_of_2(latent)), -(-most // tokens), self.decoding.shape[0]
        split = most == 1 and count > requests
        partial, weights = attend.parts(count, queries, latent, out) if split else (out, out)  # not read
        attend_latents[count * programs, -(-queries // group)](
            query, out, pool, items, self.tables, out if chosen is None else chosen, partial, weights, scale,
            programs, queries=queries, group=group, latent=latent, rotated=size - latent, width=width,
            most=0 if chosen is None else chosen.shape[1], tokens=tokens, padded_latent=padded,
            padded_rotated=max(16, next_power_of_2(size - latent)), page_tokens=page,
            step=attend.step(padded * query.element_size(), _STEP_BYTES), split_tokens=attend.SPLIT,
            most_splits=MOST_SPLITS, sparse=chosen is not None, split=split, num_warps=_WARPS, num_stages=2,
        )  # fmt: skip
        if split:
            combine[requests, queries](
                out, out.stride(1), out.stride(0), self.decoding, out, partial, weights, queries=queries, size=latent,
                padded_size=padded, sunk=False,
            )  # fmt: skip

    def score(
        self, query: torch.Tensor, weights: torch.Tensor, pool: torch.Tensor, column: int, rows: slice, longest: int
    ) -> torch.Tensor:
        """Return an indexer's scores of some rows' pasts [n, longest] float32; -inf for what a row does not see.

        Queries [n, J, D] and weights [n, J] float32 of these rows; pages [P, page, W] with keys from `column` on.
        """
        (count, heads, size), (page, width) = query.shape, pool.shape[1:]
        out = torch.empty((count, longest), dtype=torch.float32, device=query.device)
        score[count, -(-longest // _SCORED)](
            query, weights, out, longest, pool[..., column:], self.pasts[rows], self.tables, heads=heads,
            size=size, width=width, padded_heads=max(FEWEST, next_power_of_2(heads)),
            padded_size=max(16, next_power_of_2(size)), page_tokens=page, tokens=_SCORED,
        )  # fmt: skip
        return out


def splits_of(position: int, most: int | None) -> int:
    """Return among how many programs a past is split, of which a row reads all or at most `most` tokens.

    Splits are as long as in `mint_engine.gpu.attend`, or several times that if there would be too many.
    """
    seen = position + 1 if most is None else min(position + 1, most)
    times = -(-seen // (attend.SPLIT * MOST_SPLITS))
    return -(-seen // (attend.SPLIT * times))
