"""What one forward and backward pass computes: rows of several policies, and where their gradients go."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.adapters.packed import Layout, halves
from mint_engine.kernels.linear_structs import address
from mint_engine.training.pieces import Piece, Tree

ROW_MULTIPLE = 16  # products of fewer rows use other kernels, which round differently (see tests/engine/training)


@dataclass(frozen=True)
class Part:
    """One module of one policy. `a` [E, r, in] and `b` [E, r, out] (B transposed) are in the base's dtype; E is 1
    except for stacked experts. The gradients have the same shapes, in float32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    a_gradient: torch.Tensor
    b_gradient: torch.Tensor

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """The memory addresses of all four tensors."""
        return tuple(map(address, (self.a, self.b, self.a_gradient, self.b_gradient)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Held:
    """What one rank holds of a policy during an update: all of it, or the rank's part."""

    number: int  # of the update, unique among all that are held
    layout: Layout  # of the complete policy
    parts: dict[str, Part]  # by module path
    gradient: torch.Tensor  # [n] float32, of which the parts' gradients are views


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a batch: one piece of a policy, whose parts are given by module path."""

    start: int
    stop: int
    policy: int  # the number of its update
    parts: dict[str, Part]


@dataclass(frozen=True)
class Wanted:
    """The next tokens of a piece whose log-probabilities are wanted; its row rows[i] predicts targets[i]."""

    start: int  # the piece's rows in the batch
    stop: int
    rows: torch.Tensor  # [n] int64
    targets: torch.Tensor  # [n] int64
    temperature: float  # see `PolicyBatch`
    whole: bool  # a token's gradient depends on the log-probabilities of all


@dataclass(frozen=True)
class Batch:
    """T rows, a multiple of `ROW_MULTIPLE`; rows after the last segment are padding, which sees only itself."""

    tokens: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    trees: tuple[Tree, ...]
    segments: tuple[Segment, ...]  # (): compute the base without adapters
    routes: torch.Tensor | None  # [T, M, k] int64: experts that the M MoE layers use; -1: the router's

    @property
    def rows(self) -> int:
        """T"""
        return self.tokens.shape[0]

    @cached_property
    def owners(self) -> torch.Tensor:
        """Each row's segment, [T] int64; padding rows get the number of segments."""
        counts = [segment.stop - segment.start for segment in self.segments]
        counts.append(self.rows - sum(counts))
        owners = torch.arange(len(counts), device=self.tokens.device)
        return owners.repeat_interleave(torch.tensor(counts, device=owners.device))


# Takes the last layer's normed output [T, H]; returns the gradient with respect to it, or None if none is wanted.
# Yields between bounded parts of the work.
Score = Callable[[torch.Tensor], Generator[None, None, torch.Tensor | None]]


def parts_of(layout: Layout, scalings: Sequence[float], run: torch.Tensor, gradient: torch.Tensor) -> dict[str, Part]:
    """Return a policy's parts as views of its weights in the base's dtype and of its gradient, both [n]."""
    pairs = zip(halves(layout, run), halves(layout, gradient), scalings, strict=True)
    return {
        place.path: Part(a, b, scaling, a_gradient, b_gradient)
        for (place, a, b), (_, a_gradient, b_gradient), scaling in pairs
    }


def make_batch(pieces: Sequence[tuple[Piece, Held | None]], device: torch.device) -> Batch:
    """Concatenate pieces of several policies; None for all of them: compute the bare base, with its own routes."""
    rows = sum(piece.rows for piece, _ in pieces)
    tokens, positions = (np.zeros(-(-rows // ROW_MULTIPLE) * ROW_MULTIPLE, dtype=np.int64) for _ in range(2))
    trees: list[Tree] = []
    segments, start = [], 0
    for piece, held in pieces:
        stop = start + piece.rows
        tokens[start:stop], positions[start:stop] = piece.tokens, piece.positions
        trees += (Tree(start + tree.row, tree.trunk, tree.branches) for tree in piece.trees)
        if held is not None:
            segments.append(Segment(start, stop, held.number, held.parts))
        start = stop
    routes = _routes([piece for piece, held in pieces if held is not None], len(tokens))
    return Batch(
        torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device), tuple(trees), tuple(segments),
        torch.from_numpy(routes).to(device) if routes is not None else None,
    )  # fmt: skip


def _routes(pieces: Sequence[Piece], rows: int) -> NDArray[np.int64] | None:
    shapes = {piece.routes.shape[1:] for piece in pieces if piece.routes is not None}
    if not shapes:
        return None
    (shape,) = shapes
    routes, start = np.full((rows, *shape), -1, dtype=np.int64), 0
    for piece in pieces:
        if piece.routes is not None:
            routes[start : start + piece.rows] = piece.routes
        start += piece.rows
    return routes
