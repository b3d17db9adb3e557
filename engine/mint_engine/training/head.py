"""From normed outputs to log-probabilities, losses and back: a chunk of rows at a time, never [T, V] whole.

A chunk's logits are used for both directions at once, because the gradient of a token's loss needs nothing of others.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch.nn import functional

from mint_engine.training.batch import ROW_MULTIPLE
from mint_engine.training.kernels import TrainingKernels

HEAD_ROWS = 256  # with a vocabulary of 150,000 a chunk's logits take 77 MB in bf16, in float32 twice that

# From which of the wanted tokens [k] int64, and their log-probabilities [k] float32, to the gradient of the loss with
# respect to these; None where no gradient is wanted.
Grade = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Head:
    """What gives logits [n, V] of normed outputs [n, H], differentiable; with kernels, the logits are overwritten."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    kernels: TrainingKernels | None = None


@dataclass(frozen=True)
class _Tokens:
    """Wanted tokens of one chunk, in the order of their rows."""

    at: torch.Tensor  # [k] int64: which of all wanted ones
    rows: torch.Tensor  # [k] int64, counted from the chunk's first
    targets: torch.Tensor  # [k] int64


def score(
    head: Head, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, grade: Grade
) -> Generator[None, None, torch.Tensor | None]:
    """The gradient with respect to hidden [T, H] of the loss that `grade` makes of n tokens' log-probabilities.

    Token i is targets[i], predicted by row rows[i]; a row may predict several. rows, targets [n] int64. Pauses
    between a chunk's two directions and after them.
    """
    gradient = None
    wanted, index = torch.unique(rows, return_inverse=True)
    order = torch.argsort(index, stable=True)
    for number, chunk in enumerate(wanted.split(HEAD_ROWS)):
        at = order[index[order] // HEAD_ROWS == number]
        tokens = _Tokens(at, index[at] % HEAD_ROWS, targets[at])
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
    with torch.enable_grad():
        hidden = functional.pad(hidden, (0, 0, 0, -count % ROW_MULTIPLE)).requires_grad_()
        logits = head.logits(hidden)
    yield
    back = (
        _back_plainly(logits.detach(), tokens, grade)
        if head.kernels is None
        else _back_in_place(logits.detach(), tokens, grade, head.kernels)
    )
    return torch.autograd.grad(logits, hidden, back)[0][:count] if back is not None else None


def _back_plainly(logits: torch.Tensor, tokens: _Tokens, grade: Grade) -> torch.Tensor | None:
    """The loss's gradient with respect to logits [m, V], in their dtype."""
    scores = logits.float()
    norms = torch.logsumexp(scores, dim=1)
    slopes = grade(tokens.at, scores[tokens.rows, tokens.targets] - norms[tokens.rows])
    if slopes is None:
        return None
    # d log p(target) / d logits is one at the target, less the probabilities.
    total = torch.zeros_like(norms).index_add_(0, tokens.rows, slopes)
    back = scores.sub_(norms[:, None]).exp_().mul_(-total[:, None])
    back.view(-1).index_add_(0, tokens.rows * back.shape[1] + tokens.targets, slopes)
    return back.to(logits.dtype)


def _back_in_place(
    logits: torch.Tensor, tokens: _Tokens, grade: Grade, kernels: TrainingKernels
) -> torch.Tensor | None:
    """The same, where the logits were."""
    norms, given = kernels.log_sums(logits), logits[tokens.rows, tokens.targets].float()
    slopes = grade(tokens.at, given - norms[tokens.rows])
    if slopes is None:
        return None
    starts = torch.searchsorted(tokens.rows, torch.arange(logits.shape[0] + 1))
    kernels.logits_back(logits, norms, starts, tokens.targets, given, slopes)
    return logits
