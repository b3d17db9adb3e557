"""From normed outputs to log-probabilities, losses and back: a chunk of rows at a time, never [T, V] whole.

A chunk's logits are used for both directions at once, because the gradient of a token's loss needs nothing of others.
Ranks that share a vocabulary tell each other but sums and log-probabilities: a few numbers a token.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from mint_engine.parallel.group import Group
from mint_engine.training.batch import ROW_MULTIPLE, Score, Wanted
from mint_engine.training.kernels import TrainingKernels

HEAD_ROWS = 256  # with a vocabulary of 150,000 a chunk's logits take 77 MB in bf16, in float32 twice that
_FORTH_COLUMNS = (
    8192  # of logits at a time: as much as a product of a small base's layers, and the whole takes no longer
)
_BACK_ROWS = 256  # of a product back to what is hidden; torch's (oneDNN) takes twice as long for each of 512
_BACK_PARTS = 3  # of its columns, for the same reason; each reads all of the gradient

# From which of the wanted tokens [k] int64, and their log-probabilities [k] float32, to the gradient of the loss with
# respect to these; None where no gradient is wanted.
Grade = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
GradeOf = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]  # the same, of which piece

Pausing = Generator[None, None, torch.Tensor]  # what makes a tensor in bounded parts


class Product(NamedTuple):
    """A chunk's logits [n, V], which may be overwritten, and the way from their gradient to that of hidden [n, H]."""

    forth: Callable[[], Pausing]  # pauses after each part
    back: Callable[[torch.Tensor], Pausing]  # pauses before each part


# From hidden [n, H] to its product. Logits are good until the context ends.
Project = Callable[[torch.Tensor], AbstractContextManager[Product]]


@dataclass(frozen=True)
class Head:
    """What gives logits of normed outputs, `rows` of them at a time; with kernels, they are overwritten.

    With a `group` they are one rank's columns of them, and what the others' say is known by adding up.
    """

    project: Project
    kernels: TrainingKernels | None = None
    group: Group | None = None
    rows: int = HEAD_ROWS


def differentiated(logits: Callable[[torch.Tensor], torch.Tensor]) -> Project:
    """Logits by modules of any kind, whose way back is autograd's."""

    @contextmanager
    def project(hidden: torch.Tensor) -> Iterator[Product]:
        found: list[torch.Tensor] = []
        hidden = hidden.detach().requires_grad_()

        def forth() -> Pausing:
            with torch.enable_grad():
                found.append(logits(hidden))
            yield
            return found[0].detach()

        def back(gradient: torch.Tensor) -> Pausing:
            yield
            return torch.autograd.grad(found[0], hidden, gradient)[0]

        yield Product(forth, back)

    return project


def multiplied(weight: torch.Tensor, rows: int) -> Project:
    """Logits by one matrix [V, H], in a place for `rows` of them that stays: to have it anew takes long.

    Whoever comes while another's logits are in it has one more.
    """
    places: list[torch.Tensor] = []
    parts = weight.chunk(_BACK_PARTS, dim=1)

    @contextmanager
    def project(hidden: torch.Tensor) -> Iterator[Product]:
        place = places.pop() if places else weight.new_empty(rows, weight.shape[0])
        try:
            yield Product(partial(forth, hidden, place[: hidden.shape[0]]), back)
        finally:
            places.append(place)

    def forth(hidden: torch.Tensor, logits: torch.Tensor) -> Pausing:
        for first in range(0, weight.shape[0], _FORTH_COLUMNS):
            some = slice(first, first + _FORTH_COLUMNS)
            torch.mm(hidden, weight[some].t(), out=logits[:, some])
            yield
        return logits

    def back(gradient: torch.Tensor) -> Pausing:
        found = gradient.new_empty(gradient.shape[0], weight.shape[1])
        for first in range(0, gradient.shape[0], _BACK_ROWS):
            some = slice(first, first + _BACK_ROWS)
            for part, columns in zip(parts, found[some].chunk(_BACK_PARTS, dim=1), strict=True):
                yield
                torch.mm(gradient[some], part, out=columns)
        return found

    return project


@dataclass(frozen=True)
class _Tokens:
    """Wanted tokens of one chunk, in the order of their rows."""

    at: torch.Tensor  # [k] int64: which of all wanted ones
    rows: torch.Tensor  # [k] int64, counted from the chunk's first
    targets: torch.Tensor  # [k] int64
    temperature: float


@dataclass(frozen=True)
class _Graded:
    """What is known of a chunk's m rows and k tokens once the loss has seen them."""

    norms: torch.Tensor  # [m] float32: of all columns, also of those that other ranks have
    given: torch.Tensor  # [k] float32: the targets' logits
    targets: torch.Tensor  # [k] int64: as columns of this rank; beyond them where another has it
    slopes: torch.Tensor  # [k] float32: the loss's gradient with respect to log-probabilities


def score_all(head: Head, wanted: Sequence[Wanted], grade: GradeOf) -> Score:
    """What scores a batch: `score` of each piece, whose number `grade` gets."""

    def scored(hidden: torch.Tensor) -> Generator[None, None, torch.Tensor | None]:
        gradient = None
        for number, each in enumerate(wanted):
            span = slice(each.start, each.stop)
            back = yield from score(head, hidden[span], each, partial(grade, number))
            if back is not None:
                gradient = torch.zeros_like(hidden) if gradient is None else gradient
                gradient[span] = back
        return gradient

    return scored


def score(
    head: Head, hidden: torch.Tensor, wanted: Wanted, grade: Grade
) -> Generator[None, None, torch.Tensor | None]:
    """The gradient with respect to a piece's hidden [T, H] of the loss that `grade` makes of log-probabilities.

    A row may predict several tokens. Pauses after each part of a chunk's logits, and around each of its way back.
    """
    gradient = None
    rows, index = torch.unique(wanted.rows, return_inverse=True)
    order = torch.argsort(index, stable=True)
    for number, chunk in enumerate(rows.split(head.rows)):
        at = order[index[order] // head.rows == number]
        tokens = _Tokens(at, index[at] % head.rows, wanted.targets[at], wanted.temperature)
        back = yield from _chunk(head, hidden[chunk], tokens, grade)
        if back is not None:
            gradient = torch.zeros_like(hidden) if gradient is None else gradient
            gradient[chunk] = back
        yield
    return gradient


def _chunk(
    head: Head, hidden: torch.Tensor, tokens: _Tokens, grade: Grade
) -> Generator[None, None, torch.Tensor | None]:
    """hidden [n, H] -> its gradient [n, H]."""
    count = hidden.shape[0]
    with head.project(functional.pad(hidden, (0, 0, 0, -count % ROW_MULTIPLE))) as product:
        logits = yield from product.forth()
        back = (
            _back_plainly(logits, tokens, grade, head.group)
            if head.kernels is None or tokens.temperature != 1.0
            else _back_in_place(logits, tokens, grade, head.group, head.kernels)
        )
        if back is None:
            return None
        gradient = (yield from product.back(back))[:count]
    return gradient if head.group is None else head.group.sum(gradient)


def _back_plainly(logits: torch.Tensor, tokens: _Tokens, grade: Grade, group: Group | None) -> torch.Tensor | None:
    """The loss's gradient with respect to logits [m, V], in their dtype."""
    scores = logits.float()
    if tokens.temperature != 1.0:
        scores = scores / tokens.temperature
    found = _graded(scores, torch.logsumexp(scores, dim=1), tokens, grade, group)
    if found is None:
        return None
    # d log p(target) / d logits is one at the target, less the probabilities.
    total = torch.zeros_like(found.norms).index_add_(0, tokens.rows, found.slopes)
    back = scores.sub_(found.norms[:, None]).exp_().mul_(-total[:, None])
    here = _within(found.targets, back)
    at = tokens.rows * back.shape[1] + found.targets
    back.view(-1).index_add_(0, at[here], found.slopes[here])
    if tokens.temperature != 1.0:
        back.div_(tokens.temperature)
    return back.to(logits.dtype)


def _back_in_place(
    logits: torch.Tensor, tokens: _Tokens, grade: Grade, group: Group | None, kernels: TrainingKernels
) -> torch.Tensor | None:
    """The same, where the logits were."""
    found = _graded(logits, kernels.log_sums(logits), tokens, grade, group)
    if found is None:
        return None
    starts = torch.searchsorted(tokens.rows, torch.arange(logits.shape[0] + 1))
    kernels.logits_back(logits, found.norms, starts, found.targets, found.given, found.slopes)
    return logits


def _graded(
    logits: torch.Tensor, norms: torch.Tensor, tokens: _Tokens, grade: Grade, group: Group | None
) -> _Graded | None:
    """What the loss makes of logits [m, V] whose exponentials' sums have the logarithms `norms` [m]."""
    if group is None:
        given = logits[tokens.rows, tokens.targets].float()
        slopes = grade(tokens.at, given - norms[tokens.rows])
        return None if slopes is None else _Graded(norms, given, tokens.targets, slopes)
    targets = tokens.targets - group.share.vocabulary.start
    held = logits[tokens.rows, targets.clamp(0, logits.shape[1] - 1)].float()
    norms, given = _complete(norms, torch.where(_within(targets, logits), held, 0.0), group)
    slopes = grade(tokens.at, given - norms[tokens.rows])
    # The first rank alone knows the loss: all others have zeros.
    return None if slopes is None else _Graded(norms, given, targets, group.sum(slopes))


def _complete(norms: torch.Tensor, given: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """From every rank's norms [m] to those of all columns; and its targets' logits [k] to those of all."""
    count, rows = group.share.count, norms.shape[0]
    own = torch.cat([norms.new_zeros(count * rows), given])
    own[group.share.rank * rows :][:rows] = norms
    every = group.sum(own)
    return torch.logsumexp(every[: count * rows].view(count, rows), dim=0), every[count * rows :]


def _within(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Which targets are among the columns of logits [m, V]. bool"""
    return (targets >= 0) & (targets < logits.shape[1])
