"""How examples become rows: completions of one prompt are branches of a trunk, which is computed once.

A piece holds as many examples of one policy as fit its rows, in order. How a policy is cut into pieces depends only
on that policy, and every sum over rows is taken one piece at a time, so its numbers are the same, bit for bit,
whatever else is in the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mint_engine.training.example import Example, PolicyBatch, needs_sampler

PIECE_ROWS = 1024  # fills the matrix products; with 256 rows they already run within 5% of their peak here

_WEIGHTS, _EXAMPLES, _LONGEST = "weights", "examples", "examples times the longest"
# What a loss's sum is divided by; those that are not here are plain sums.
_DIVISORS = {"bnpo": _WEIGHTS, "dapo": _WEIGHTS, "cispo": _WEIGHTS, "grpo": _EXAMPLES, "dr_grpo": _LONGEST}


@dataclass(frozen=True)
class Tree:
    """A trunk's rows, starting at `row`, then each branch's. A branch sees the trunk and its own past."""

    row: int
    trunk: int
    branches: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The count of all rows."""
        return self.trunk + sum(self.branches)


@dataclass(frozen=True)
class Entries:
    """The weighted next tokens of a piece; all [n], in the order of its examples."""

    rows: NDArray[np.int64]  # whose output predicts the token, relative to the piece's first
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    sampler: NDArray[np.float32]  # the sampler's log-probabilities; 0 if the loss reads none
    advantages: NDArray[np.float32]
    old: NDArray[np.float32]  # the policy's log-probabilities before its first step with the example; NaN: none yet
    examples: NDArray[np.int64]  # index of the example in the batch
    places: NDArray[np.int64]  # position in the example
    shares: NDArray[np.float32]  # factor of the token's loss in the policy's sum, beside its weight


@dataclass(frozen=True)
class Piece:
    """Rows of one policy that are computed together."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    trees: tuple[Tree, ...]
    entries: Entries
    routes: NDArray[np.int16] | None = None  # [rows, M, k]; -1 for examples without routes

    @property
    def rows(self) -> int:
        """The count of rows."""
        return len(self.tokens)


def plan_pieces(batch: PolicyBatch, most: int = PIECE_ROWS) -> Iterator[Piece]:
    """Cut a policy's examples into pieces of at most `most` rows; a longer example is a piece of its own.

    Examples without any weight are left out. Pieces are made lazily.
    """
    draft = _Draft(batch)
    for number, example in enumerate(batch.examples):
        found = np.flatnonzero(np.asarray(example.weights, dtype=np.float32))
        if not found.size:
            continue
        trunk = _trunk_of(example, int(found[0]) + 1)
        branch = example.tokens[found[0] + 1 : rows_of(example)]
        if draft.tokens and len(draft.tokens) + draft.cost(trunk, branch) > most:
            yield draft.finish()
            draft = _Draft(batch)
        draft.add(number, trunk, branch, found)
    if draft.tokens:
        yield draft.finish()


def rows_of(example: Example) -> int:
    """Return how many rows an example takes by itself: what follows its last weighted token is not computed."""
    return next((count for count in range(len(example.weights), 0, -1) if example.weights[count - 1]), 0)


def longest_of(batch: PolicyBatch) -> int:
    """Return the rows of the example that takes the most by itself."""
    return max(map(rows_of, batch.examples), default=0)


def add_up(one: str, other: str) -> bool:
    """Whether gradients of two types of loss may be added before a step: their sums are divided by the same."""
    return _DIVISORS.get(one) == _DIVISORS.get(other)


def normaliser(batch: PolicyBatch) -> float:
    """Return what a batch adds to its policy's normaliser, by which the sum of losses is divided, as in TRL.

    It is 0 for Tinker's losses, which are plain sums.
    """
    divisor = _DIVISORS.get(batch.loss.type)
    if divisor == _WEIGHTS:
        return float(sum(np.asarray(each.weights, dtype=np.float64).sum() for each in batch.examples))
    if divisor == _EXAMPLES:
        return float(len(batch.examples))
    if divisor == _LONGEST:
        return float(len(batch.examples) * batch.completion_tokens)
    return 0.0


def _share(example: Example, loss_type: str) -> float:
    """Return the factor of an example's losses: grpo averages each completion first."""
    return 1.0 / max(1.0, float(np.asarray(example.weights, dtype=np.float64).sum())) if loss_type == "grpo" else 1.0


class _Trunk(NamedTuple):
    """What examples must have in common to share a trunk."""

    tokens: tuple[int, ...]
    covered: bytes  # which tokens have routes; b"" if none has


def _trunk_of(example: Example, count: int) -> _Trunk:
    covered = example.routes[:count, 0, 0] >= 0 if example.routes is not None else np.zeros(0, dtype=bool)
    return _Trunk(tuple(example.tokens[:count]), covered.tobytes() if covered.any() else b"")


class _Draft:
    """A piece under construction."""

    def __init__(self, batch: PolicyBatch) -> None:
        self._batch = batch
        self.tokens: list[int] = []
        self._positions: list[int] = []
        self._trees: list[tuple[int, _Trunk, list[int]]] = []  # first row, trunk, branches
        self._rows: list[NDArray[np.int64]] = []
        self._taken: list[tuple[int, NDArray[np.int64]]] = []  # example, its weighted positions
        self._routes: list[tuple[int, NDArray[np.integer[Any]]]] = []  # first row, routes from there on

    def cost(self, trunk: _Trunk, branch: Sequence[int]) -> int:
        return len(branch) + (0 if self._shares(trunk) else len(trunk.tokens))

    def add(self, number: int, trunk: _Trunk, branch: Sequence[int], found: NDArray[np.int64]) -> None:
        """Add an example: its branch beside those of the same trunk, and its weighted positions."""
        routes, size = self._batch.examples[number].routes, len(trunk.tokens)
        if not self._shares(trunk):
            self._trees.append((len(self.tokens), trunk, []))
            if routes is not None:
                self._routes.append((len(self.tokens), routes[:size]))
            self._put(trunk.tokens, 0)
        row, _, branches = self._trees[-1]
        branches.append(len(branch))
        start = len(self.tokens) - size  # row of position 0, as if the trunk were directly before the branch
        if routes is not None:
            self._routes.append((len(self.tokens), routes[size : size + len(branch)]))
        self._put(branch, size)
        self._rows.append(np.where(found < size, row + found, start + found))
        self._taken.append((number, found))

    def finish(self) -> Piece:
        return Piece(
            tokens=np.asarray(self.tokens, dtype=np.int64),
            positions=np.asarray(self._positions, dtype=np.int64),
            trees=tuple(Tree(row, len(trunk.tokens), tuple(branches)) for row, trunk, branches in self._trees),
            entries=self._entries(),
            routes=self._replayed(),
        )

    def _shares(self, trunk: _Trunk) -> bool:
        return bool(self._trees) and self._trees[-1][1] == trunk

    def _put(self, tokens: Sequence[int], position: int) -> None:
        self.tokens += tokens
        self._positions += range(position, position + len(tokens))

    def _replayed(self) -> NDArray[np.int16] | None:
        if not self._routes:
            return None
        routes = np.full((len(self.tokens), *self._routes[0][1].shape[1:]), -1, dtype=np.int16)
        for row, each in self._routes:
            routes[row : row + len(each)] = each
        return routes

    def _entries(self) -> Entries:
        examples, reads, kind = self._batch.examples, needs_sampler(self._batch.loss), self._batch.loss.type

        def gather(name: str) -> list[float]:
            return [getattr(examples[number], name)[at] for number, found in self._taken for at in found]

        def old(number: int, found: NDArray[np.int64]) -> NDArray[np.float32]:
            logprobs = np.asarray(examples[number].old_logprobs, dtype=np.float32)
            return logprobs[found] if logprobs.size else np.full(len(found), np.nan, dtype=np.float32)

        count = sum(len(found) for _, found in self._taken)
        shares = [np.full(len(found), _share(examples[number], kind)) for number, found in self._taken]
        return Entries(
            rows=np.concatenate(self._rows),
            targets=np.asarray(gather("targets"), dtype=np.int64),
            weights=np.asarray(gather("weights"), dtype=np.float32),
            sampler=np.asarray(gather("sampler_logprobs") if reads else [0.0] * count, dtype=np.float32),
            advantages=np.asarray(gather("advantages") if reads else [0.0] * count, dtype=np.float32),
            old=np.concatenate([old(number, found) for number, found in self._taken]),
            examples=np.concatenate([np.full(len(found), number) for number, found in self._taken]),
            places=np.concatenate([found for _, found in self._taken]),
            shares=np.concatenate(shares).astype(np.float32),
        )
