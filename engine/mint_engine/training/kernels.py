"""The compiled kernels of the lean training pass as Python functions; the C++ sources have the shapes."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mint_engine.kernels.library import DTYPES, MAX_RANK, load_library
from mint_engine.training.pieces import Tree

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "attend_trees": (_P, _P, _P, _P, _I, _P, _I, _I, _I, _F),
    "attend_trees_back": (_P, _P, _P, _P, _P, _P, _I, _P, _I, _I, _I, _F),
    "norm_back": (_P, _P, _P, _P, _I, _I, _F),
    "silu_mul_back": (_P, _P, _P, _I, _I),
    "turn": (_P, _I, _I, _I, _I, _P, _P, _P, _I, _F),
    "head_norm": (_P, _I, _I, _I, _I, _I, _P, _F),
    "head_norm_back": (_P, _P, _I, _I, _I, _I, _I, _P, _F),
    "adapt": (_P, _I, _P, _I, _I, _P, _P, _I, _I, _I, _F, _P),
    "outer": (_P, _I, _P, _I, _P, _I, _I, _I),
    "log_sums": (_P, _I, _I, _P),
    "logits_back": (_P, _I, _I, _P, _P, _P, _P, _P),
}


@dataclass(frozen=True)
class Heads:
    """Attention's sizes: query heads, key/value heads, a head's size, and what scores are multiplied by."""

    queries: int
    keys: int
    dim: int
    scale: float

    @property
    def width(self) -> int:
        """Numbers of a row of queries, keys and values."""
        return (self.queries + 2 * self.keys) * self.dim


@dataclass(frozen=True)
class Trees:
    """Trees as the kernels take them."""

    trees: torch.Tensor  # [n, 4] int64: first row, rows of the trunk, branches, where these begin in `lengths`
    lengths: torch.Tensor  # int64


def lay_trees(trees: Sequence[Tree]) -> Trees:
    """Sort a batch's trees out."""
    rows: list[tuple[int, ...]] = []
    lengths: list[int] = []
    for tree in trees:
        rows.append((tree.row, tree.trunk, len(tree.branches), len(lengths)))
        lengths += tree.branches
    return Trees(torch.tensor(rows, dtype=torch.int64).view(-1, 4), torch.tensor(lengths, dtype=torch.int64))


class TrainingKernels:
    """The kernels of one number type. All tensors are contiguous and on CPU, but for what says otherwise."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"mint_{name}_{DTYPES[dtype]}")
            function.argtypes, function.restype = signature, None
            setattr(self, f"_{name}", function)

    _attend_trees: Callable[..., None]
    _attend_trees_back: Callable[..., None]
    _norm_back: Callable[..., None]
    _silu_mul_back: Callable[..., None]
    _turn: Callable[..., None]
    _head_norm: Callable[..., None]
    _head_norm_back: Callable[..., None]
    _adapt: Callable[..., None]
    _outer: Callable[..., None]
    _log_sums: Callable[..., None]
    _logits_back: Callable[..., None]

    def attend(self, qkv: torch.Tensor, trees: Trees, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
        """qkv [T, (Q + 2 K) D] -> attended [T, Q D], zero for rows of no tree, and sums [T, Q] for the way back."""
        out = qkv.new_zeros((qkv.shape[0], heads.queries * heads.dim))
        sums = torch.zeros((qkv.shape[0], heads.queries))
        self._attend_trees(
            qkv.data_ptr(), out.data_ptr(), sums.data_ptr(), trees.trees.data_ptr(), trees.trees.shape[0],
            trees.lengths.data_ptr(), heads.queries, heads.keys, heads.dim, heads.scale,
        )  # fmt: skip
        return out, sums

    def attend_back(
        self, qkv: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, dout: torch.Tensor, trees: Trees, heads: Heads
    ) -> torch.Tensor:
        """What `attend` took and gave, and its gradient [T, Q D] -> that of qkv [T, (Q + 2 K) D]."""
        back = torch.zeros_like(qkv)
        self._attend_trees_back(
            qkv.data_ptr(), out.data_ptr(), sums.data_ptr(), dout.data_ptr(), back.data_ptr(), trees.trees.data_ptr(),
            trees.trees.shape[0], trees.lengths.data_ptr(), heads.queries, heads.keys, heads.dim, heads.scale,
        )  # fmt: skip
        return back

    def norm_back(
        self, dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> None:
        """dx [T, H] += the gradient of x, from that of RMSNorm(x) * weight, dy [T, H]."""
        self._norm_back(
            dy.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr(), x.shape[0], x.shape[1], epsilon
        )

    def silu_mul_back(self, gate_up: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """The gradient of gate_up [T, 2 I], from that of silu(gate) * up, dy [T, I]."""
        back = torch.empty_like(gate_up)
        self._silu_mul_back(gate_up.data_ptr(), dy.data_ptr(), back.data_ptr(), dy.shape[0], dy.shape[1])
        return back

    def turn(
        self, qkv: torch.Tensor, heads: Heads, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        *, back: bool = False,
    ) -> None:  # fmt: skip
        """Turn queries and keys of qkv by their positions' angles [P, half] float32, in place; `back` undoes it."""
        self._turn(
            qkv.data_ptr(), qkv.shape[0], heads.queries + heads.keys, heads.width, heads.dim, positions.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), cos.shape[1], -1.0 if back else 1.0,
        )  # fmt: skip

    def head_norm(
        self, qkv: torch.Tensor, heads: Heads, query: torch.Tensor, key: torch.Tensor, epsilon: float
    ) -> None:
        """RMSNorm with weights [D] of every query and key head, in place."""
        for first, count, weight in ((0, heads.queries, query), (heads.queries, heads.keys, key)):
            self._head_norm(
                qkv.data_ptr(), qkv.shape[0], first, count, heads.width, heads.dim, weight.data_ptr(), epsilon
            )

    def head_norm_back(
        self, dqkv: torch.Tensor, raw: torch.Tensor, heads: Heads, query: torch.Tensor, key: torch.Tensor,
        epsilon: float,
    ) -> None:  # fmt: skip
        """The way back of `head_norm`, in place; `raw` is what that took."""
        for first, count, weight in ((0, heads.queries, query), (heads.queries, heads.keys, key)):
            self._head_norm_back(
                dqkv.data_ptr(), raw.data_ptr(), raw.shape[0], first, count, heads.width, heads.dim,
                weight.data_ptr(), epsilon,
            )  # fmt: skip

    def adapt(
        self, y: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """y [n, out] += x [n, in] down^T scaling up, in place -> x down^T scaling [n, r].

        down [r, in] and up [r, out] are contiguous; rows of y and x may lie apart.
        """
        if down.shape[0] > MAX_RANK:
            middle = (x @ down.t()).mul_(scaling)
            y.addmm_(middle, up)
            return middle
        middle = x.new_empty((x.shape[0], down.shape[0]))
        self._adapt(
            y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), x.shape[0], down.data_ptr(), up.data_ptr(),
            down.shape[0], down.shape[1], up.shape[1], scaling, middle.data_ptr(),
        )  # fmt: skip
        return middle

    def outer(self, left: torch.Tensor, right: torch.Tensor, total: torch.Tensor) -> None:
        """total [r, n] float32 += left [T, r]^T right [T, n]; rows of left and right may lie apart."""
        self._outer(
            left.data_ptr(), left.stride(0), right.data_ptr(), right.stride(0), total.data_ptr(), left.shape[0],
            left.shape[1], right.shape[1],
        )  # fmt: skip

    def log_sums(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [n, V] -> the logarithm of the sum of each row's exponentials [n] float32."""
        sums = torch.empty(logits.shape[0])
        self._log_sums(logits.data_ptr(), *logits.shape, sums.data_ptr())
        return sums

    def logits_back(
        self, logits: torch.Tensor, sums: torch.Tensor, starts: torch.Tensor, targets: torch.Tensor,
        given: torch.Tensor, slopes: torch.Tensor,
    ) -> None:  # fmt: skip
        """logits [n, V] become the gradient of a loss over k tokens' log-probabilities, whose slopes are given.

        Tokens starts[i] to starts[i + 1] are those of row i; starts [n + 1] and targets [k] int64, given [k] float32
        their logits, slopes [k] float32. A target beyond these columns counts in its row's total alone.
        """
        self._logits_back(
            logits.data_ptr(), *logits.shape, sums.data_ptr(), starts.data_ptr(), targets.data_ptr(),
            given.data_ptr(), slopes.data_ptr(),
        )  # fmt: skip


@cache
def find_training_kernels(dtype: torch.dtype, device: torch.device) -> TrainingKernels | None:
    """The fastest kernels that this machine runs, or None: another device or type, or nothing was compiled for it."""
    if device.type != "cpu" or dtype not in DTYPES:
        return None
    found = load_library()
    return TrainingKernels(found[0], dtype) if found else None
