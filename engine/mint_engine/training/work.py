"""One forward and backward of many policies, in bounded pieces of work between which an engine decodes."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.training.batch import Batch, Part, Score, make_batch, parts_of
from mint_engine.training.example import PolicyBatch
from mint_engine.training.head import score
from mint_engine.training.losses import token_losses
from mint_engine.training.passes import Pass
from mint_engine.training.pieces import PIECE_ROWS, Piece, normaliser, plan_pieces
from mint_engine.training.policy import Policy, vector


@dataclass(frozen=True)
class LossOutcome:
    """What one policy's forward and backward gave."""

    loss_sum: float  # over weighted tokens, before any normaliser
    tokens: int  # weighted ones
    rows: int  # computed ones; what completions share counts once
    logprobs: tuple[NDArray[np.float32], ...]  # of each example's targets; 0 where the weight is 0
    metrics: dict[str, float]  # means over weighted tokens: ratio, clipped, kept, kl (k3), drift |now - sampler|
    finite: bool  # whether all of it was; if not, the policy's next step will be skipped


@dataclass(eq=False)
class Share:
    """One policy's part of the work."""

    policy: Policy
    batch: PolicyBatch
    pieces: tuple[Piece, ...]
    gradient: torch.Tensor  # [n] float32: becomes the policy's own only when all is done
    parts: dict[str, Part]
    logprobs: tuple[NDArray[np.float32], ...]
    loss_sum: float = 0.0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def outcome(self) -> LossOutcome:
        """What has been found."""
        means = {name: total / max(1, self.tokens) for name, total in self.sums.items()}
        finite = bool(np.isfinite(self.loss_sum)) and all(np.isfinite(each).all() for each in self.logprobs)
        rows = sum(piece.rows for piece in self.pieces)
        return LossOutcome(self.loss_sum, self.tokens, rows, self.logprobs, means, finite)


@dataclass(eq=False)
class Item:
    """One piece of one policy, and the base's log-probabilities of its tokens [n] once they are known."""

    share: Share
    piece: Piece
    base: torch.Tensor | None = None

    @property
    def wants_base(self) -> bool:
        """Whether the loss compares with the base."""
        return bool(self.share.batch.loss.kl_coefficient)


class Work:
    """Made by `Trainer.begin`. Owned by the step thread."""

    def __init__(self, passed: Pass, shares: Sequence[Share], device: torch.device) -> None:
        self._pass, self._shares, self._device = passed, shares, device
        self._steps: Iterator[None] = chain.from_iterable(self._microbatch(items) for items in _compose(shares))
        self.done = False

    def advance(self) -> bool:
        """Compute the next bounded piece of work; returns whether there is more.

        If it raises, the work is over and no policy has changed.
        """
        if self.done:
            return False
        try:
            with torch.no_grad():
                next(self._steps)
        except StopIteration:
            self._finish()
        except BaseException:
            self.cancel()
            raise
        return not self.done

    def cancel(self) -> None:
        """Give the work up: what it has computed so far is forgotten."""
        if not self.done:
            self.done = True
            self._steps = iter(())
            for share in self._shares:
                share.policy.busy = False

    def results(self) -> dict[str, LossOutcome]:
        """By policy, once it is done."""
        return {share.policy.name: share.outcome() for share in self._shares}

    def _finish(self) -> None:
        self.done = True
        for share in self._shares:
            policy, batch = share.policy, share.batch
            policy.gradient = share.gradient if policy.gradient is None else policy.gradient.add_(share.gradient)
            policy.normaliser += normaliser(batch)
            policy.sums = batch.loss.type
            policy.broken |= not share.outcome().finite
            policy.busy = False

    def _microbatch(self, items: Sequence[Item]) -> Iterator[None]:
        compared = [item for item in items if item.wants_base]
        if compared:
            bare = make_batch([(item.piece, {}) for item in compared], self._device)
            bare = Batch(bare.tokens, bare.positions, bare.trees, segments=())  # by its own routes too
            yield from self._pass.run(bare, self._scorer(compared, learn=False))
        batch = make_batch([(item.piece, item.share.parts) for item in items], self._device)
        yield from self._pass.run(batch, self._scorer(items, learn=True))

    def _scorer(self, items: Sequence[Item], *, learn: bool) -> Score:
        def scored(hidden: torch.Tensor) -> Generator[None, None, torch.Tensor | None]:
            gradient, start = torch.zeros_like(hidden) if learn else None, 0
            for item in items:
                span = slice(start, start + item.piece.rows)
                back = yield from self._score(item, hidden[span], learn=learn)
                if gradient is not None and back is not None:
                    gradient[span] = back
                start = span.stop
            return gradient

        return scored

    def _score(self, item: Item, hidden: torch.Tensor, *, learn: bool) -> Generator[None, None, torch.Tensor | None]:
        entries = item.piece.entries
        found = torch.zeros(len(entries.rows), device=self._device)

        def grade(taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | None:
            found[taken] = logprobs
            return _grade(item, taken, logprobs) if learn else None

        rows, targets = (torch.from_numpy(each).to(self._device) for each in (entries.rows, entries.targets))
        back = yield from score(self._pass.head, hidden, rows, targets, grade)
        if learn:
            _note(item.share, entries.examples, entries.places, found)
        else:
            item.base = found
        return back


def make_share(policy: Policy, batch: PolicyBatch, dtype: torch.dtype) -> Share:
    """One policy's part of the work, with its weights cast to the base's dtype."""
    gradient = vector(policy.weights.numel(), policy.weights.device)
    return Share(
        policy=policy,
        batch=batch,
        pieces=plan_pieces(batch),
        gradient=gradient,
        parts=parts_of(policy.form, policy.weights.to(dtype), gradient),
        logprobs=tuple(np.zeros(len(example.tokens), dtype=np.float32) for example in batch.examples),
    )


def _compose(shares: Sequence[Share]) -> Iterator[list[Item]]:
    """Microbatches of whole pieces, in order, of at most `PIECE_ROWS` rows where no piece is longer."""
    items: list[Item] = []
    rows = 0
    for share in shares:
        for piece in share.pieces:
            if items and rows + piece.rows > PIECE_ROWS:
                yield items
                items, rows = [], 0
            items.append(Item(share, piece))
            rows += piece.rows
    if items:
        yield items


def _grade(item: Item, taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """The gradient of a policy's summed loss with respect to log-probabilities [k] of some of a piece's tokens."""
    share, entries = item.share, item.piece.entries

    def chosen(array: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(array).to(logprobs.device)[taken]

    weights, sampler = chosen(entries.weights), chosen(entries.sampler)
    base = item.base[taken] if item.base is not None else None
    with torch.enable_grad():
        now = logprobs.detach().requires_grad_()
        found = token_losses(share.batch.loss, now, sampler, chosen(entries.advantages), base)
        (slopes,) = torch.autograd.grad((found.loss * weights * chosen(entries.shares)).sum(), now)
    share.loss_sum += float((found.loss.detach() * weights).sum(dtype=torch.float64))
    share.tokens += len(taken)
    means = {
        "ratio": found.ratio, "clipped": found.clipped, "kept": found.kept, "kl": found.kl,
        "drift": (logprobs - sampler).abs(),
    }  # fmt: skip
    for name, values in means.items():
        share.sums[name] = share.sums.get(name, 0.0) + float(values.sum(dtype=torch.float64))
    return slopes


def _note(share: Share, examples: NDArray[np.int64], places: NDArray[np.int64], found: torch.Tensor) -> None:
    for example, place, value in zip(examples.tolist(), places.tolist(), found.tolist(), strict=True):
        share.logprobs[example][place] = value
