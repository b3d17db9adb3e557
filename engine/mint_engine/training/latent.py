"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1.2) in the lean training pass, forward and backward.

Every head's keys and values are computed from the latents. Attention then runs over trees, with as many key/value
heads as query heads, all of one size: a head is its rotated part, then the other part, then zeros. The forward keeps
the first product, the attended values and an indexer's choice; the backward computes queries, keys and values again.
With several ranks, each has its share of heads, and all gradients are its part of a sum.

Letters in shapes: T rows, Q heads, C latent size, E rotated size of a head, K its other size, V a value's size, D the
heads' common size.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch.nn import functional

from mint_engine.kernels.library import Kernels
from mint_engine.kernels.linear_structs import Angles
from mint_engine.kernels.row_structs import Norm
from mint_engine.training.batch import Batch
from mint_engine.training.kernels import Heads, TopKMask, TrainingKernels, Trees
from mint_engine.training.lean_indexer import Indexer, as_halves, choose
from mint_engine.training.products import Product, Rows, Saved, multiply, multiply_back

DEEP = 32  # numbers of a head that the kernels' matrix registers take at once


@dataclass(frozen=True)
class Latent:
    """One layer's attention. `first` gives queries, or the input of `query_norm` and `queries`, then [C + E]."""

    first: Product
    query_norm: torch.Tensor | None
    queries: Product | None  # [Q (K + E)]
    norm: torch.Tensor  # [C]
    up: Product  # [Q (K + V)]: `kv_b_proj`
    indexer: Indexer | None
    shares: bool  # whether it uses the previous layer's choice
    sizes: tuple[int, int, int, int]  # Q, K, E, V
    pairs: bool  # whether neighbours are rotated together, not halves
    scale: float
    epsilon: float

    @property
    def heads(self) -> Heads:
        """The heads as attention over trees takes them."""
        count, plain, rotated, value = self.sizes
        return Heads(count, count, -(-max(plain + rotated, value) // DEEP) * DEEP, self.scale)


@dataclass(frozen=True)
class SavedLatent:
    """What a layer's backward needs from its forward."""

    latent: Latent
    made: torch.Tensor  # [T, *]: the first product's output
    attended: torch.Tensor  # [T, Q V]
    sums: torch.Tensor  # [T, Q]
    choice: TopKMask | None  # None: all rows
    first: Saved


@dataclass(frozen=True)
class _Expanded:
    """What is computed from the first product's output."""

    compressed: torch.Tensor | None  # [T, *], normed, if queries are compressed
    latents: torch.Tensor  # [T, C], normed
    qkv: torch.Tensor  # [T, 3 Q D], rotated
    queries: Saved | None
    up: Saved


@dataclass(frozen=True)
class LeanLatent:
    """Forward and backward of one base's latent attention."""

    kernels: Kernels
    training: TrainingKernels
    angles: Angles

    def forward(
        self, latent: Latent, x: torch.Tensor, rows: Rows, trees: Trees, batch: Batch, chosen: TopKMask | None
    ) -> Generator[None, None, SavedLatent]:
        """x [T, H] -> what the backward needs, with the attended values; yields after every large product.

        `chosen` is the previous layer's choice.
        """
        made, first = multiply(self.training, latent.first, x, rows)
        yield
        expanded = yield from self._expand(latent, made, rows, batch)
        choice = chosen if latent.shares else None
        if latent.indexer is not None and expanded.compressed is not None:
            choice = choose(self.training, latent.indexer, x, expanded.compressed, rows, trees, batch, self.angles)
            yield
        found, sums = self.training.attend(expanded.qkv, trees, latent.heads, choice)
        yield
        return SavedLatent(latent, made, _values(found, latent), sums, choice, first)

    def backward(
        self, saved: SavedLatent, x: torch.Tensor, dattended: torch.Tensor, rows: Rows, trees: Trees, batch: Batch
    ) -> Generator[None, None, torch.Tensor]:
        """Inputs and result of `forward`, and the gradient of `attended` [T, Q V] -> that of x [T, H]."""
        latent = saved.latent
        expanded = yield from self._expand(latent, saved.made, rows, batch)
        dqkv = self.training.attend_back(
            expanded.qkv, _padded(saved.attended, latent), saved.sums, _padded(dattended, latent), trees,
            latent.heads, saved.choice,
        )  # fmt: skip
        self.training.rotate(dqkv, latent.heads, batch.positions, self.angles, back=True)
        yield
        dqueries, dup, drotated = _apart(dqkv, latent)
        before = saved.made.shape[1] - latent.norm.shape[0] - drotated.shape[1]
        if expanded.queries is not None and expanded.compressed is not None and latent.query_norm is not None:
            dnormed = multiply_back(self.training, expanded.queries, dqueries, expanded.compressed)
            dqueries = self._norm_back(dnormed, saved.made[:, :before], latent.query_norm, latent.epsilon)
            yield
        dnormed = multiply_back(self.training, expanded.up, dup, expanded.latents)
        yield
        dlatents = self._norm_back(dnormed, saved.made[:, before : -drotated.shape[1]], latent.norm, latent.epsilon)
        narrow = multiply_back(self.training, saved.first, torch.cat((dqueries, dlatents, drotated), dim=1), x)
        yield
        return narrow

    def _expand(
        self, latent: Latent, made: torch.Tensor, rows: Rows, batch: Batch
    ) -> Generator[None, None, _Expanded]:
        size, rotated = latent.norm.shape[0], latent.sizes[2]
        queries, latents, key = torch.split(made, [made.shape[1] - size - rotated, size, rotated], dim=1)
        compressed, saved = None, None
        if latent.queries is not None and latent.query_norm is not None:
            compressed = self._norm(queries, latent.query_norm, latent.epsilon)
            queries, saved = multiply(self.training, latent.queries, compressed, rows)
            yield
        normed = self._norm(latents, latent.norm, latent.epsilon)
        up, saved_up = multiply(self.training, latent.up, normed, rows)
        yield
        qkv = _together(queries, up, key, latent)
        self.training.rotate(qkv, latent.heads, batch.positions, self.angles)
        return _Expanded(compressed, normed, qkv, saved, saved_up)

    def _norm(self, rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return self.kernels.add_norm(rows.contiguous(), None, Norm(weight), epsilon)

    def _norm_back(self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        dx = torch.zeros_like(dy)
        self.training.norm_back(dx, dy, x.contiguous(), Norm(weight), epsilon)
        return dx


def _together(queries: torch.Tensor, up: torch.Tensor, key: torch.Tensor, latent: Latent) -> torch.Tensor:
    """Queries [T, Q (K + E)], `up` [T, Q (K + V)] and the heads' common key [T, E] -> [T, 3 Q D], not rotated yet."""
    count, plain, rotated, value = latent.sizes
    qkv = queries.new_zeros((len(queries), 3, count, latent.heads.dim))
    asks, keys, values = qkv.unbind(1)
    own, made = queries.view(len(queries), count, -1), up.view(len(up), count, -1)
    asks[..., :rotated] = as_halves(own[..., plain:], pairs=latent.pairs)
    asks[..., rotated : rotated + plain] = own[..., :plain]
    keys[..., :rotated] = as_halves(key, pairs=latent.pairs)[:, None]
    keys[..., rotated : rotated + plain] = made[..., :plain]
    values[..., :value] = made[..., plain:]
    return qkv.flatten(1)


def _apart(dqkv: torch.Tensor, latent: Latent) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward of `_together`; sums all heads' gradients of the common key."""
    count, plain, rotated, value = latent.sizes
    asks, keys, values = dqkv.view(len(dqkv), 3, count, -1).unbind(1)
    middle = slice(rotated, rotated + plain)
    dqueries = torch.cat((asks[..., middle], _neighbours(asks[..., :rotated], latent)), dim=-1)
    dup = torch.cat((keys[..., middle], values[..., :value]), dim=-1)
    dkey = _neighbours(keys[..., :rotated].float().sum(dim=1).to(dqkv.dtype), latent)
    return dqueries.flatten(1), dup.flatten(1), dkey


def _neighbours(rotated: torch.Tensor, latent: Latent) -> torch.Tensor:
    return rotated.view(*rotated.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2) if latent.pairs else rotated


def _values(attended: torch.Tensor, latent: Latent) -> torch.Tensor:
    """[T, Q D] -> [T, Q V], contiguous (for a single head it would be a view)."""
    count, value = latent.sizes[0], latent.sizes[3]
    return attended.view(len(attended), count, -1)[..., :value].flatten(1).contiguous()


def _padded(attended: torch.Tensor, latent: Latent) -> torch.Tensor:
    """[T, Q V] -> [T, Q D], padded with zeros."""
    count, value = latent.sizes[0], latent.sizes[3]
    heads = attended.view(len(attended), count, value)
    return functional.pad(heads, (0, latent.heads.dim - value)).flatten(1)
