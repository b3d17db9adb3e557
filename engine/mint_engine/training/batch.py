"""What one forward and backward over the base computes: rows of several policies, and where their gradients go."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.adapters.packed import Layout, halves
from mint_engine.kernels.linear_structs import address
from mint_engine.training.pieces import Piece, Tree

ROW_MULTIPLE = 16  # products of fewer rows take other kernels, which round differently (see tests/engine/training)


@dataclass(frozen=True)
class Part:
    """One module of one policy. `a` [E, r, in] and `b` [E, r, out] (B transposed) in the base's dtype, E is 1 but for
    stacked experts; the gradients of the same shapes in float32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    a_gradient: torch.Tensor
    b_gradient: torch.Tensor

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where all four begin."""
        return tuple(map(address, (self.a, self.b, self.a_gradient, self.b_gradient)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Held:
    """What is held of one policy during an update: all of it, or one rank's part."""

    number: int  # of the update, among all that are held
    layout: Layout  # of the whole policy
    parts: dict[str, Part]  # by module path
    gradient: torch.Tensor  # [n] float32: what the parts' gradients are views of


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop`: one piece of a policy with these parts, by module path."""

    start: int
    stop: int
    policy: int  # the number of its update
    parts: dict[str, Part]


@dataclass(frozen=True)
class Wanted:
    """Next tokens of one piece whose log-probabilities are wanted: targets[i] is predicted by row rows[i] of it."""

    start: int  # the piece's rows in the batch
    stop: int
    rows: torch.Tensor  # [n] int64
    targets: torch.Tensor  # [n] int64
    temperature: float = 1.0  # see `PolicyBatch`


@dataclass(frozen=True)
class Batch:
    """T rows, a multiple of `ROW_MULTIPLE`; those beyond the last segment are padding, alone with themselves."""

    tokens: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    trees: tuple[Tree, ...]
    segments: tuple[Segment, ...]  # () computes the bare base
    routes: torch.Tensor | None = None  # [T, M, k] int64: experts that the M layers with any must take; -1 for free

    @property
    def rows(self) -> int:
        """T"""
        return self.tokens.shape[0]

    @cached_property
    def owners(self) -> torch.Tensor:
        """Which segment each row is of, [T] int64; rows of none come after the last."""
        counts = [segment.stop - segment.start for segment in self.segments]
        counts.append(self.rows - sum(counts))
        owners = torch.arange(len(counts), device=self.tokens.device)
        return owners.repeat_interleave(torch.tensor(counts, device=owners.device))


# From the last layer's normed output [T, H] to the gradient with respect to it, or None where no gradient is wanted;
# pauses between two bounded parts of the work.
Score = Callable[[torch.Tensor], Generator[None, None, torch.Tensor | None]]


def parts_of(layout: Layout, scalings: Sequence[float], run: torch.Tensor, gradient: torch.Tensor) -> dict[str, Part]:
    """A policy's parts as views of its weights in the base's dtype and of its gradient, both [n]."""
    pairs = zip(halves(layout, run), halves(layout, gradient), scalings, strict=True)
    return {
        place.path: Part(a, b, scaling, a_gradient, b_gradient)
        for (place, a, b), (_, a_gradient, b_gradient), scaling in pairs
    }


def make_batch(pieces: Sequence[tuple[Piece, Held | None]], device: torch.device) -> Batch:
    """Put pieces of several policies side by side; with None for all of them, the bare base takes its own routes."""
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
