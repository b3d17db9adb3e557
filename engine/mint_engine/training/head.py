"""From normed outputs to log-probabilities, losses and back: one chunk of rows at a time, never all of [T, V].

A chunk's logits serve both directions at once, because the gradient of a token's loss depends on no other token.
Where it depends on others (`Wanted.whole`), the logits of a piece that has several chunks are computed twice.
Ranks that share a vocabulary only exchange sums and log-probabilities: a few numbers per token.
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

HEAD_ROWS = 256  # with a vocabulary of 150,000, a chunk's logits take 77 MB in bf16, twice that in float32
_FORTH_COLUMNS = 8192  # of logits at a time: as much as a product in a small base's layers, and no slower in total
_BACK_ROWS = 256  # of a product back to hidden; with 512 rows, torch's (oneDNN) takes twice as long for each row
_BACK_PARTS = 3  # of that product's columns, for the same reason; each part reads the complete gradient

# Takes the indices of some wanted tokens [k] int64 and their log-probabilities [k] float32; returns the gradient of
# the loss with respect to the latter, or None if no gradient is wanted.
Grade = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
GradeOf = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]  # the same, for a piece's number

Pausing = Generator[None, None, torch.Tensor]  # computes a tensor in bounded parts


class Projection(NamedTuple):
    """Computes a chunk's logits [n, V], which may be overwritten, and from their gradient that of hidden [n, H]."""

    forward: Callable[[], Pausing]  # yields after each part
    backward: Callable[[torch.Tensor], Pausing]  # yields before each part


# Takes hidden [n, H]; returns a context with its projection. The logits are valid until the context ends.
Project = Callable[[torch.Tensor], AbstractContextManager[Projection]]


@dataclass(frozen=True)
class Head:
    """Computes logits of normed outputs, `rows` at a time. With kernels, the logits are overwritten in place.

    With a `group`, the logits are one rank's columns; sums over ranks supply what depends on the others'.
    """

    project: Project
    kernels: TrainingKernels | None = None
    group: Group | None = None
    rows: int = HEAD_ROWS


def differentiated(logits: Callable[[torch.Tensor], torch.Tensor]) -> Project:
    """Return a projection by modules of any kind, with autograd for the backward."""

    @contextmanager
    def project(hidden: torch.Tensor) -> Iterator[Projection]:
        """Project hidden [n, H], keeping the graph of its forward for its backward."""
        found: list[torch.Tensor] = []
        hidden = hidden.detach().requires_grad_()

        def forward() -> Pausing:
            with torch.enable_grad():
                found.append(logits(hidden))
            yield
            return found[0].detach()

        def backward(gradient: torch.Tensor) -> Pausing:
            yield
            return torch.autograd.grad(found[0], hidden, gradient)[0]

        yield Projection(forward, backward)

    return project


def multiplied(weight: torch.Tensor, rows: int) -> Project:
    """Return a projection by one matrix [V, H], into a reused buffer for `rows` rows: allocating it takes long.

    If the buffer is in use, another one is allocated.
    """
    places: list[torch.Tensor] = []
    parts = weight.chunk(_BACK_PARTS, dim=1)

    @contextmanager
    def project(hidden: torch.Tensor) -> Iterator[Projection]:
        place = places.pop() if places else weight.new_empty(rows, weight.shape[0])
        try:
            yield Projection(partial(forward, hidden, place[: hidden.shape[0]]), backward)
        finally:
            places.append(place)

    def forward(hidden: torch.Tensor, logits: torch.Tensor) -> Pausing:
        for first in range(0, weight.shape[0], _FORTH_COLUMNS):
            some = slice(first, first + _FORTH_COLUMNS)
            torch.mm(hidden, weight[some].t(), out=logits[:, some])
            yield
        return logits

    def backward(gradient: torch.Tensor) -> Pausing:
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
    """The wanted tokens of one chunk, in the order of their rows."""

    at: torch.Tensor  # [k] int64: their indices among all wanted ones
    rows: torch.Tensor  # [k] int64, relative to the chunk's first row
    targets: torch.Tensor  # [k] int64
    temperature: float


@dataclass(frozen=True)
class _Graded:
    """What is known of a chunk's m rows and k tokens after grading."""

    norms: torch.Tensor  # [m] float32: log-sum-exp over all columns, including other ranks'
    given: torch.Tensor  # [k] float32: the targets' logits
    targets: torch.Tensor  # [k] int64: as columns of this rank; out of range if another rank has it
    slopes: torch.Tensor  # [k] float32: the loss's gradient with respect to log-probabilities


def score_all(head: Head, wanted: Sequence[Wanted], grade: GradeOf) -> Score:
    """Return a function that scores a batch by `score` of each piece; `grade` gets the piece's number."""

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
    """Return the gradient, with respect to a piece's hidden [T, H], of the loss that `grade` differentiates.

    A row may predict several tokens. With `wanted.whole`, `grade` gets all tokens in one call. Yields after each part
    of a chunk's logits, and around each of its backward.
    """
    gradient, chunks = None, _chunks(head, wanted)
    if wanted.whole and len(chunks) > 1:
        logprobs = yield from _look(head, hidden, chunks)
        slopes = grade(torch.arange(len(logprobs), device=logprobs.device), logprobs)
        if slopes is None:
            return None
        grade = partial(_known, slopes)
    for chunk, tokens in chunks:
        back = yield from _chunk(head, hidden[chunk], tokens, grade)
        if back is not None:
            gradient = torch.zeros_like(hidden) if gradient is None else gradient
            gradient[chunk] = back
        yield
    return gradient


def _chunks(head: Head, wanted: Wanted) -> list[tuple[torch.Tensor, _Tokens]]:
    """Return a piece's chunks: rows [n] of its hidden, and the tokens that these predict."""
    rows, index = torch.unique(wanted.rows, return_inverse=True)
    order = torch.argsort(index, stable=True)
    found = []
    for number, chunk in enumerate(rows.split(head.rows)):
        at = order[index[order] // head.rows == number]
        found.append((chunk, _Tokens(at, index[at] % head.rows, wanted.targets[at], wanted.temperature)))
    return found


def _look(
    head: Head, hidden: torch.Tensor, chunks: Sequence[tuple[torch.Tensor, _Tokens]]
) -> Generator[None, None, torch.Tensor]:
    """Return the log-probabilities [n] float32 of all tokens of a piece."""
    found = torch.zeros(sum(len(tokens.at) for _, tokens in chunks), device=hidden.device)

    def note(at: torch.Tensor, logprobs: torch.Tensor) -> None:
        found[at] = logprobs

    for chunk, tokens in chunks:
        yield from _chunk(head, hidden[chunk], tokens, note)
        yield
    return found


def _known(slopes: torch.Tensor, at: torch.Tensor, _logprobs: torch.Tensor) -> torch.Tensor:
    return slopes[at]


def _chunk(
    head: Head, hidden: torch.Tensor, tokens: _Tokens, grade: Grade
) -> Generator[None, None, torch.Tensor | None]:
    """hidden [n, H] -> its gradient [n, H]."""
    count = hidden.shape[0]
    with head.project(functional.pad(hidden, (0, 0, 0, -count % ROW_MULTIPLE))) as projection:
        logits = yield from projection.forward()
        back = (
            _back_plainly(logits, tokens, grade, head.group)
            if head.kernels is None or tokens.temperature != 1.0
            else _back_in_place(logits, tokens, grade, head.group, head.kernels)
        )
        if back is None:
            return None
        gradient = (yield from projection.backward(back))[:count]
    return gradient if head.group is None else head.group.sum(gradient)


def _back_plainly(logits: torch.Tensor, tokens: _Tokens, grade: Grade, group: Group | None) -> torch.Tensor | None:
    """Return the loss's gradient with respect to logits [m, V], in their dtype."""
    scores = logits.float()
    if tokens.temperature != 1.0:
        scores = scores / tokens.temperature
    found = _graded(scores, torch.logsumexp(scores, dim=1), tokens, grade, group)
    if found is None:
        return None
    # d log p(target) / d logits is one at the target, minus the probabilities.
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
    """As `_back_plainly`, but overwrite the logits with the gradient."""
    found = _graded(logits, kernels.log_sums(logits), tokens, grade, group)
    if found is None:
        return None
    starts = torch.searchsorted(tokens.rows, torch.arange(logits.shape[0] + 1))
    kernels.logits_back(logits, found.norms, starts, found.targets, found.given, found.slopes)
    return logits


def _graded(
    logits: torch.Tensor, norms: torch.Tensor, tokens: _Tokens, grade: Grade, group: Group | None
) -> _Graded | None:
    """Grade the tokens of logits [m, V] whose log-sum-exps are `norms` [m]; None if no gradient is wanted."""
    if group is None:
        given = logits[tokens.rows, tokens.targets].float()
        slopes = grade(tokens.at, given - norms[tokens.rows])
        return None if slopes is None else _Graded(norms, given, tokens.targets, slopes)
    targets = tokens.targets - group.share.vocabulary.start
    held = logits[tokens.rows, targets.clamp(0, logits.shape[1] - 1)].float()
    norms, given = _complete(norms, torch.where(_within(targets, logits), held, 0.0), group)
    slopes = grade(tokens.at, given - norms[tokens.rows])
    # Only the first rank knows the loss: all others have zeros.
    return None if slopes is None else _Graded(norms, given, targets, group.sum(slopes))


def _complete(norms: torch.Tensor, given: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine all ranks' norms [m] into those of all columns, and their targets' logits [k] into all targets'."""
    count, rows = group.share.count, norms.shape[0]
    own = torch.cat([norms.new_zeros(count * rows), given])
    own[group.share.rank * rows :][:rows] = norms
    every = group.sum(own)
    return torch.logsumexp(every[: count * rows].view(count, rows), dim=0), every[count * rows :]


def _within(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return which targets are among the columns of logits [m, V], bool."""
    return (targets >= 0) & (targets < logits.shape[1])
