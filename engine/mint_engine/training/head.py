"""From normed outputs to log-probabilities, losses and back: a chunk of rows at a time, never [T, V] whole.

A chunk's logits are used for both directions at once, because the gradient of a token's loss needs nothing of others.
"""

from collections.abc import Callable, Generator
from functools import partial

import torch
from torch.nn import functional

from mint_engine.training.batch import ROW_MULTIPLE

HEAD_ROWS = 128  # with a vocabulary of 150,000 a chunk's float32 logits take 77 MB

Head = Callable[[torch.Tensor], torch.Tensor]  # [n, H] -> logits [n, V], differentiable
# From which of the wanted tokens [k] int64, and their log-probabilities [k] float32, to the gradient of the loss with
# respect to these; None where no gradient is wanted.
Grade = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


def score(
    head: Head, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, grade: Grade
) -> Generator[None, None, torch.Tensor | None]:
    """The gradient with respect to hidden [T, H] of the loss that `grade` makes of n tokens' log-probabilities.

    Token i is targets[i], predicted by row rows[i]; a row may predict several. rows, targets [n] int64. Pauses after
    every chunk.
    """
    gradient = None
    wanted, index = torch.unique(rows, return_inverse=True)
    for number, chunk in enumerate(wanted.split(HEAD_ROWS)):
        taken = (index // HEAD_ROWS == number).nonzero()[:, 0]
        logits, inputs = _logits(head, hidden[chunk])
        back = _back(logits, index[taken] % HEAD_ROWS, targets[taken], partial(grade, taken))
        if back is not None:
            gradient = torch.zeros_like(hidden) if gradient is None else gradient
            gradient[chunk] = torch.autograd.grad(logits, inputs, back)[0][: len(chunk)]
        yield
    return gradient


def _logits(head: Head, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [n, H] -> logits [m, V], m a multiple of `ROW_MULTIPLE`, and the padded hidden that they came from."""
    with torch.enable_grad():
        inputs = functional.pad(hidden, (0, 0, 0, -hidden.shape[0] % ROW_MULTIPLE)).requires_grad_()
        return head(inputs), inputs


def _back(
    logits: torch.Tensor,
    rows: torch.Tensor,
    targets: torch.Tensor,
    grade: Callable[[torch.Tensor], torch.Tensor | None],
) -> torch.Tensor | None:
    """The loss's gradient with respect to logits [m, V], in their dtype."""
    scores = logits.detach().float()
    norms = torch.logsumexp(scores, dim=1)
    slopes = grade(scores[rows, targets] - norms[rows])
    if slopes is None:
        return None
    # d log p(target) / d logits is one at the target, less the probabilities.
    total = torch.zeros_like(norms).index_add_(0, rows, slopes)
    back = scores.sub_(norms[:, None]).exp_().mul_(-total[:, None])
    back.view(-1).index_add_(0, rows * back.shape[1] + targets, slopes)
    return back.to(logits.dtype)
