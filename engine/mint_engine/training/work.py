"""One forward and backward pass of many policies, in bounded pieces of work between which the engine decodes.

A work may be a turn: it computes a part of long updates, and leaves the rest to later works.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mint_engine.model.device import settle
from mint_engine.training.agenda import Agenda
from mint_engine.training.batch import Held, Wanted, make_batch
from mint_engine.training.example import PolicyBatch, needs_sampler
from mint_engine.training.losses import sequence_losses, token_losses
from mint_engine.training.pieces import PIECE_ROWS, Piece, normaliser, plan_pieces
from mint_engine.training.policy import Policy, spans
from mint_engine.training.update_ranks import UpdateRanks


@dataclass(frozen=True)
class LossOutcome:
    """The outcome of one policy's forward and backward pass."""

    loss_sum: float  # over weighted tokens, not normalised
    tokens: int  # count of weighted tokens
    rows: int  # count of computed rows; what completions share counts once
    logprobs: tuple[NDArray[np.float32], ...]  # of each example's targets; 0 where the weight is 0
    # Means over weighted tokens: kl (k3), and for losses that read the sampler's log-probabilities also ratio,
    # clipped, kept and drift |now - sampler|.
    metrics: dict[str, float]
    finite: bool  # whether the loss and all log-probabilities are; if not, the policy's next step will be skipped


@dataclass(eq=False)
class Share:
    """One policy's part of a work, or of several successive works; the policy stays unchanged until its end."""

    number: int  # unique within the trainer
    policy: Policy
    batch: PolicyBatch
    logprobs: tuple[NDArray[np.float32], ...] = ()  # empty, like `agenda`, until a work comes to it
    agenda: Agenda | None = None
    loss_sum: float = 0.0
    tokens: int = 0
    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    held: Held | None = None  # None until its first work has begun

    @property
    def ended(self) -> bool:
        """Whether all of it is computed."""
        return self.agenda is not None and self.agenda.done

    def turn(self, most: int) -> Iterator[Piece]:
        """Yield the pieces that one work computes, see `Agenda.turn`."""
        if self.agenda is None:
            self.agenda = Agenda(plan_pieces(self.batch))
            self.logprobs = tuple(np.zeros(len(example.tokens), dtype=np.float32) for example in self.batch.examples)
        for piece in self.agenda.turn(most):
            self.rows += piece.rows
            yield piece

    def outcome(self) -> LossOutcome:
        """Return the outcome so far."""
        means = {name: total / max(1, self.tokens) for name, total in self.sums.items()}
        finite = bool(np.isfinite(self.loss_sum)) and all(np.isfinite(each).all() for each in self.logprobs)
        return LossOutcome(self.loss_sum, self.tokens, self.rows, self.logprobs, means, finite)


@dataclass(eq=False)
class Item:
    """One piece of one policy, with the base's log-probabilities of its tokens [n] once they are known."""

    share: Share
    piece: Piece
    base: torch.Tensor | None = None

    @property
    def wants_base(self) -> bool:
        """Whether the loss compares with the base, i.e. has a KL coefficient."""
        return bool(self.share.batch.loss.kl_coefficient)


class Work:
    """A work made by `Trainer.begin`. Owned by the step thread."""

    def __init__(self, ranks: UpdateRanks, shares: Sequence[Share], device: torch.device, most: int) -> None:
        """Computes at most `most` rows of each share, see `Agenda.turn`."""
        self._ranks, self._shares, self._device, self._most = ranks, shares, device, most
        self._steps = self._compute_all()
        self._alone = False
        self.done = False

    def advance(self, *, alone: bool = False) -> bool:
        """Compute the next bounded piece of work; returns whether there is more.

        `alone`: no tenant is served meanwhile, so microbatches may be larger. If it raises, the work is over and no
        policy has changed.
        """
        if self.done:
            return False
        self._alone = alone
        try:
            with torch.no_grad():
                next(self._steps)
            settle(self._device)
        except StopIteration as end:
            self._finish(end.value)
        except BaseException:
            self.cancel()
            raise
        return not self.done

    def cancel(self) -> None:
        """Give up the work and its shares: discard what this and earlier works have computed of them."""
        if not self.done:
            self.done = True
            self._steps.close()
            self._let_go(self._shares)

    def results(self) -> dict[str, LossOutcome]:
        """Return the outcomes of ended shares by policy, once the work is done."""
        return {share.policy.name: share.outcome() for share in self._shares if share.ended}

    def left(self) -> dict[str, Share]:
        """Return the shares to continue in a later work by policy, once this one is done."""
        return {share.policy.name: share for share in self._shares if not share.ended}

    def _finish(self, gradients: Sequence[torch.Tensor]) -> None:
        self.done = True
        ended = [share for share in self._shares if share.ended]
        for share, gradient in zip(ended, gradients, strict=True):
            policy, batch = share.policy, share.batch
            policy.gradient = gradient
            policy.normaliser += normaliser(batch)
            policy.sums = batch.loss.type
            policy.broken |= not share.outcome().finite
        self._let_go(ended)

    def _let_go(self, shares: Sequence[Share]) -> None:
        self._ranks.let_go([share.number for share in shares])
        for share in shares:
            share.held, share.policy.busy = None, False

    def _compute_all(self) -> Generator[None, None, list[torch.Tensor]]:
        """Compute and return the gradients [n] float32 of ended shares, with what the policies had before added.

        The policies get them only when all of the work is done.
        """
        fresh = {share.number: share for share in self._shares if share.held is None}
        for each in (yield from self._ranks.hold({number: share.policy for number, share in fresh.items()})):
            fresh[each.number].held = each
        for items in _compose(self._shares, self._most, self._most_rows):
            compared = [item for item in items if item.wants_base]
            if compared:
                yield from self._compute(compared, learn=False)
            yield from self._compute(items, learn=True)
        ended = [share for share in self._shares if share.ended]
        gradients = yield from self._ranks.gather([share.held for share in ended if share.held is not None])
        for share, gradient in zip(ended, gradients, strict=True):
            yield from _add(gradient, share.policy.gradient)
        settle(self._device)  # here, so that what fails on the device is raised before any policy changes
        return gradients

    def _compute(self, items: Sequence[Item], *, learn: bool) -> Iterator[None]:
        """Add the items' gradients, or without `learn` compute the bare base's log-probabilities of their tokens."""
        batch = make_batch([(item.piece, item.share.held if learn else None) for item in items], self._device)
        found = [torch.zeros(len(item.piece.entries.rows), device=self._device) for item in items]

        def grade(number: int, taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | None:
            found[number][taken] = logprobs
            return _grade(items[number], taken, logprobs) if learn else None

        yield from self._ranks.run(batch, self._wanted(items), grade, learn=learn)
        for item, logprobs in zip(items, found, strict=True):
            if learn:
                _note(item.share, item.piece.entries.examples, item.piece.entries.places, logprobs)
            else:
                item.base = logprobs

    def _most_rows(self) -> int:
        """Return the most rows of the microbatch that begins now."""
        return max(PIECE_ROWS, self._ranks.most_rows) if self._alone else PIECE_ROWS

    def _wanted(self, items: Sequence[Item]) -> list[Wanted]:
        wanted, start = [], 0
        for item in items:
            entries, stop = item.piece.entries, start + item.piece.rows
            rows, targets = (torch.from_numpy(each).to(self._device) for each in (entries.rows, entries.targets))
            batch = item.share.batch
            wanted.append(Wanted(start, stop, rows, targets, batch.temperature, batch.loss.by_sequence))
            start = stop
        return wanted


def _add(gradient: torch.Tensor, before: torch.Tensor | None) -> Iterator[None]:
    if before is not None:
        for span in spans(gradient):
            gradient[span] += before[span]
            yield


def _compose(shares: Sequence[Share], most: int, most_rows: Callable[[], int]) -> Iterator[list[Item]]:
    """Yield microbatches of pieces, in order, of at most `most_rows()` rows unless a single piece is longer.

    Shares are cut into pieces only when it is their turn: cutting those of many policies at once would stall steps.
    """
    items: list[Item] = []
    rows = 0
    for share in shares:
        for piece in share.turn(most):
            if items and rows + piece.rows > most_rows():
                yield items
                items, rows = [], 0
            items.append(Item(share, piece))
            rows += piece.rows
    if items:
        yield items


def _grade(item: Item, taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a policy's summed loss with respect to log-probabilities [k] of a piece's tokens."""
    share, entries = item.share, item.piece.entries

    def chosen(array: NDArray[np.float32] | NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(logprobs.device)[taken]

    weights, sampler = chosen(entries.weights), chosen(entries.sampler)
    base = item.base[taken] if item.base is not None else None
    with torch.enable_grad():
        now = logprobs.detach().requires_grad_()
        told = share.batch.loss, now, sampler, chosen(entries.advantages), base, chosen(entries.old)
        by_sequence = share.batch.loss.by_sequence
        found = sequence_losses(*told, chosen(entries.examples)) if by_sequence else token_losses(*told)
        (slopes,) = torch.autograd.grad((found.loss * weights * chosen(entries.shares)).sum(), now)
    share.loss_sum += float((found.loss.detach() * weights).sum(dtype=torch.float64))
    share.tokens += len(taken)
    means = {"kl": found.kl}
    if needs_sampler(share.batch.loss):
        means |= {
            "ratio": found.ratio, "clipped": found.clipped, "kept": found.kept, "drift": (logprobs - sampler).abs(),
        }  # fmt: skip
    for name, values in means.items():
        share.sums[name] = share.sums.get(name, 0.0) + float(values.sum(dtype=torch.float64))
    return slopes


def _note(share: Share, examples: NDArray[np.int64], places: NDArray[np.int64], found: torch.Tensor) -> None:
    for example, place, value in zip(examples.tolist(), places.tolist(), found.tolist(), strict=True):
        share.logprobs[example][place] = value
