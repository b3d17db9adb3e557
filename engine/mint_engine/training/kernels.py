"""The lean training pass's compiled kernels as Python functions; the C++ sources document the shapes."""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.kernels.attention_structs import PLAIN, AttentionVariant, HeadNorms, variant_struct
from mint_engine.kernels.library import Kernels, bind, find_kernels, load_library
from mint_engine.kernels.linear_structs import Angles, address
from mint_engine.kernels.row_structs import Activation, Norm, activation_struct, norm_struct
from mint_engine.training.pieces import Tree

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "attend_trees": (_P, _P, _P, _P, _I, _P, _P, _P, _I, _I, _I, _F, _P),
    "attend_trees_back": (_P, _P, _P, _P, _P, _P, _I, _P, _P, _P, _I, _I, _I, _F, _P),
    "top_k_trees": (_P, _P, _I, _I, _I, _P, _I, _P, _P, _P),
    "norm_back": (_P, _P, _P, _P, _I, _I, _F),
    "gate_mul_back": (_P, _P, _P, _P, _I, _I, _P),
    "rotate_heads": (_P, _I, _I, _I, _I, _P, _P, _P, _I, _I, _F),
    "head_norm": (_P, _I, _I, _I, _I, _I, _P, _F),
    "head_norm_back": (_P, _P, _I, _I, _I, _I, _I, _P, _F),
    "multiply_grouped": (_P, _P, _I, _P, _I, _I, _P, _I, _I, _P, _I, _P, _P),
    "multiply_grouped_back": (_P, _P, _I, _P, _I, _I, _I, _I, _P, _I, _P, _P),
    "add_gradients": (_P, _P, _I, _I, _P, _I, _P, _P),
    "combine": (_P, _I, _P, _P, _I, _I, _I, _P),
    "combine_back": (_P, _I, _P, _P, _I, _I, _I, _P, _P, _P),
    "logits_back": (_P, _I, _I, _P, _P, _P, _P, _P),
}
# What a policy's adapter adds to a run's part of a product: `AdapterRun` in the C++ sources; pointers are integers.
ADAPTER_RUN = np.dtype(
    [(name, np.int64) for name in ("first", "rows", "column", "width", "rank", "middle")]
    + [(name, np.uint64) for name in ("a", "b", "a_gradient", "b_gradient")]
    + [("scaling", np.float64)]
)


@dataclass(frozen=True)
class Heads:
    """Attention's sizes: query heads, key/value heads, head size; the scores' factor, and what rows see.

    With `pairs`, neighbours are rotated together, not halves.
    """

    queries: int
    keys: int
    dim: int
    scale: float
    variant: AttentionVariant = PLAIN
    pairs: bool = False

    @property
    def width(self) -> int:
        """The count of numbers in a row of queries, keys and values."""
        return (self.queries + 2 * self.keys) * self.dim


@dataclass(frozen=True)
class Trees:
    """Trees in the form that the kernels take."""

    trees: torch.Tensor  # [n, 4] int64: first row, rows of the trunk, branches, where these begin in `lengths`
    lengths: torch.Tensor  # int64


def lay_trees(trees: Sequence[Tree]) -> Trees:
    """Convert a batch's trees for the kernels."""
    rows: list[tuple[int, ...]] = []
    lengths: list[int] = []
    for tree in trees:
        rows.append((tree.row, tree.trunk, len(tree.branches), len(lengths)))
        lengths += tree.branches
    return Trees(torch.tensor(rows, dtype=torch.int64).view(-1, 4), torch.tensor(lengths, dtype=torch.int64))


@dataclass(frozen=True)
class TopKMask:
    """Which places of its tree each row attends to, in the form that the kernels take (`top_k_mask.h`)."""

    bits: torch.Tensor  # uint8, flat
    of: torch.Tensor  # [n, 2] int64, per tree: offset of its bits, or -1: all that rows see; bytes per place


def allocate_mask(trees: Sequence[Tree], top_k: int) -> TopKMask | None:
    """Allocate a mask of at most `top_k` places per row; None if no row sees more than that."""
    of, size = [], 0
    for tree in trees:
        places = tree.trunk + max(tree.branches, default=0)
        if places <= top_k:
            of.append((-1, 0))
            continue
        stride = -(-tree.rows // 32) * 4 + 16  # kernels write words of 32 rows, and may read 16 bytes beyond
        of.append((size, stride))
        size += -(-places // 32) * 32 * stride  # kernels process 32 places at a time
    return TopKMask(torch.zeros(size, dtype=torch.uint8), torch.tensor(of, dtype=torch.int64)) if size else None


class TrainingKernels:
    """The kernels for one dtype. All tensors are on CPU, and contiguous unless stated otherwise."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, serving: Kernels) -> None:
        self.log_sums = serving.log_sums
        self._compiled = bind(library, _SIGNATURES, dtype)

    def attend(
        self, qkv: torch.Tensor, trees: Trees, heads: Heads, mask: TopKMask | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """qkv [T, (Q + 2 K) D] -> attended [T, Q D], zero for rows of no tree, and sums [T, Q] for the backward.

        A `mask` needs as many key heads as query heads.
        """
        out = qkv.new_zeros((qkv.shape[0], heads.queries * heads.dim))
        sums = torch.zeros((qkv.shape[0], heads.queries))
        self._compiled.attend_trees(
            address(qkv), address(out), address(sums), address(trees.trees), trees.trees.shape[0],
            address(trees.lengths), *_addresses(mask), heads.queries, heads.keys, heads.dim, heads.scale,
            ctypes.byref(variant_struct(heads.variant)),
        )  # fmt: skip
        return out, sums

    def attend_back(
        self, qkv: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, dout: torch.Tensor, trees: Trees,
        heads: Heads, mask: TopKMask | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Input and outputs of `attend`, and the gradient [T, Q D] of `out` -> that of qkv [T, (Q + 2 K) D]."""
        back = torch.zeros_like(qkv)
        self._compiled.attend_trees_back(
            address(qkv), address(out), address(sums), address(dout), address(back), address(trees.trees),
            trees.trees.shape[0], address(trees.lengths), *_addresses(mask), heads.queries, heads.keys, heads.dim,
            heads.scale, ctypes.byref(variant_struct(heads.variant)),
        )  # fmt: skip
        return back

    def select_top_k(
        self, projected: torch.Tensor, weights: torch.Tensor, size: int, top_k: int, trees: Trees, mask: TopKMask
    ) -> None:
        """Mark in `mask` the rows that each row attends to: the `top_k` that J heads of D numbers score best.

        projected [T, (J + 1) D], rotated: each head's query, then the common key; weights [T, J] of heads' scores.
        """
        self._compiled.top_k_trees(
            address(projected), address(weights), weights.shape[1], size, top_k, address(trees.trees),
            trees.trees.shape[0], address(trees.lengths), *_addresses(mask),
        )  # fmt: skip

    def norm_back(self, dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, norm: Norm, epsilon: float) -> None:
        """Add to dx [T, H] the gradient of x, given dy [T, H] of RMSNorm(x) * weight; without a norm, dy itself."""
        if not norm:
            dx += dy
            return
        self._compiled.norm_back(
            address(dy), address(x), ctypes.byref(norm_struct(norm)), address(dx), x.shape[0], x.shape[1],
            epsilon,
        )  # fmt: skip

    def gate_mul_back(
        self, gate_up: torch.Tensor, dy: torch.Tensor, by: Activation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of gate_up [T, 2 I], given dy [T, I] of `gate_mul`; and that one's output [T, I]."""
        back, gated, of = torch.empty_like(gate_up), torch.empty_like(dy), activation_struct(by)
        self._compiled.gate_mul_back(
            address(gate_up), address(dy), address(back), address(gated), *dy.shape, ctypes.byref(of)
        )
        return back, gated

    def rotate(
        self, qkv: torch.Tensor, heads: Heads, positions: torch.Tensor, angles: Angles, *, back: bool = False
    ) -> None:
        """Rotate queries and keys of qkv by their positions' angles, in place; `back` rotates in reverse."""
        self._compiled.rotate_heads(
            address(qkv), qkv.shape[0], heads.queries + heads.keys, heads.width, heads.dim, address(positions),
            address(angles.cos), address(angles.sin), angles.cos.shape[1], heads.pairs, -1.0 if back else 1.0,
        )  # fmt: skip

    def head_norm(self, qkv: torch.Tensor, heads: Heads, norms: HeadNorms) -> None:
        """Apply RMSNorm to each query and key head, or to all query and all key heads of a row, in place."""
        for first, count, size, norm in _normed(heads, norms):
            self._compiled.head_norm(
                address(qkv), qkv.shape[0], first, count, heads.width, size, ctypes.byref(norm_struct(norm)),
                norms.epsilon,
            )  # fmt: skip

    def head_norm_back(self, dqkv: torch.Tensor, raw: torch.Tensor, heads: Heads, norms: HeadNorms) -> None:
        """The backward of `head_norm`, in place; `raw` is its input."""
        for first, count, size, norm in _normed(heads, norms):
            self._compiled.head_norm_back(
                address(dqkv), address(raw), raw.shape[0], first, count, heads.width, size,
                ctypes.byref(norm_struct(norm)), norms.epsilon,
            )  # fmt: skip

    def multiply_grouped(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, bounds: torch.Tensor,
        adapters: NDArray[np.void],
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """x [R, in], rows bounds[e] to bounds[e + 1] by weight[e] [out, in] -> y [R, out]; and x A^T scaling, flat.

        bounds [E + 1] int64; `weight` may be strided in its first two dimensions. `adapters` is ordered by run.
        """
        count, high, wide = weight.shape
        y, middles = x.new_empty((x.shape[0], high)), torch.empty(_middles(adapters))
        self._compiled.multiply_grouped(
            address(x), address(bounds), count, address(weight, rows_apart=True), *weight.stride()[:2],
            address(bias), wide, high, adapters.ctypes.data, len(adapters),
            address(middles), address(y),
        )  # fmt: skip
        return y, middles

    def multiply_grouped_back(
        self, dy: torch.Tensor, weight: torch.Tensor, bounds: torch.Tensor, adapters: NDArray[np.void]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """dy [R, out] -> dx [R, in]; and dy B^T scaling, flat."""
        count, high, wide = weight.shape
        dx, backs = dy.new_empty((dy.shape[0], wide)), torch.empty(_middles(adapters))
        self._compiled.multiply_grouped_back(
            address(dy), address(bounds), count, address(weight, rows_apart=True), *weight.stride()[:2], wide, high,
            adapters.ctypes.data, len(adapters), address(backs), address(dx),
        )  # fmt: skip
        return dx, backs

    def add_gradients(
        self,
        x: torch.Tensor,
        dy: torch.Tensor,
        adapters: NDArray[np.void],
        middles: torch.Tensor,
        backs: torch.Tensor,
    ) -> None:
        """Add to all gradients of A and B, given a product's inputs and results in both directions."""
        self._compiled.add_gradients(
            address(x), address(dy), x.shape[1], dy.shape[1], adapters.ctypes.data, len(adapters), address(middles),
            address(backs),
        )  # fmt: skip

    def combine(self, rows: torch.Tensor, back: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """rows [P, H], the rows `back` [T, k] int64 of each token's pairs and weights [T, k] float32 -> sums [T, H].

        A pair whose row is out of range adds nothing.
        """
        combined = rows.new_empty((back.shape[0], rows.shape[1]))
        self._compiled.combine(
            address(rows), rows.shape[0], address(back), address(weights), *back.shape, rows.shape[1],
            address(combined),
        )  # fmt: skip
        return combined

    def combine_back(
        self, rows: torch.Tensor, back: torch.Tensor, weights: torch.Tensor, dy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of `combine`, and its output's gradient -> that of rows [P, H] and of weights [T, k] float32."""
        given, slopes = torch.empty_like(rows), torch.empty(back.shape)
        self._compiled.combine_back(
            address(rows), rows.shape[0], address(back), address(weights), *back.shape, rows.shape[1],
            address(dy), address(given), address(slopes),
        )  # fmt: skip
        return given, slopes

    def logits_back(
        self, logits: torch.Tensor, sums: torch.Tensor, starts: torch.Tensor, targets: torch.Tensor,
        given: torch.Tensor, slopes: torch.Tensor,
    ) -> None:  # fmt: skip
        """Overwrite logits [n, V] by the gradient of a loss, given its `slopes` for k tokens' log-probabilities.

        Row i has tokens starts[i] to starts[i + 1]; starts [n + 1] and targets [k] int64; given [k] float32, the
        targets' logits; slopes [k] float32. A target beyond these columns only counts in its row's total.
        """
        self._compiled.logits_back(
            address(logits), *logits.shape, address(sums), address(starts), address(targets),
            address(given), address(slopes),
        )  # fmt: skip


def _addresses(mask: TopKMask | None) -> tuple[int | None, int | None]:
    return (address(mask.bits), address(mask.of)) if mask is not None else (None, None)


def _normed(heads: Heads, norms: HeadNorms) -> Iterator[tuple[int, int, int, Norm]]:
    """Yield, per norm: its first unit (in units of its size), the count of units, their size, and the norm."""
    if norms.joint:
        yield 0, 1, heads.queries * heads.dim, norms.query
        yield heads.queries // heads.keys, 1, heads.keys * heads.dim, norms.key
    else:
        yield 0, heads.queries, heads.dim, norms.query
        yield heads.queries, heads.keys, heads.dim, norms.key


def _middles(adapters: NDArray[np.void]) -> int:
    """Return the count of numbers in all middle products, even for each row."""
    return int(adapters["middle"][-1] + adapters["rows"][-1] * (adapters["rank"][-1] + 1)) if len(adapters) else 0


@cache
def find_training_kernels(dtype: torch.dtype, device: torch.device) -> TrainingKernels | None:
    """Return the fastest kernels for this machine; None for another device or dtype, or if none are compiled."""
    serving, found = find_kernels(dtype, device), load_library()
    return TrainingKernels(found[0], dtype, serving) if serving and found else None
