"""Choosing the next token from logits. What one row gets never depends on its neighbours.

A greedy row costs an argmax in the logits' own dtype; only rows with a temperature are weighed, in float32.
Temperature, top-k, top-p and min-p are applied in this order, as transformers does. A token is drawn by inverting the
distribution at a number that depends on nothing but the request's seed and the token's index, so a request gives the
same tokens again in whatever batch it runs, if that gives it the same logits: own kernels do, bit for bit;
transformers' modules as far as the library's products do not depend on the batch's shape. The kernel that draws is
held against `draw_plainly` by tests.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch.nn import functional

from mint_engine.kernels.library import find_kernels
from mint_engine.model.likeliest import likeliest
from mint_engine.scheduling.request import Sampling, Scored

_NUCLEUS = 256  # candidates among which top-p is first tried, before the whole vocabulary is sorted
_BLOCK = 256  # tokens whose mass is added up first when a distribution is inverted


def choose_tokens(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, int]]) -> list[int | None]:
    """One token for each row of logits [n, V]; `wanted` has each row's parameters and its token's index.

    None where the row's peak is NaN or infinite: its weights overflowed.
    """
    best, sound = likeliest(logits)
    chosen: list[int | None] = [token if sound[row] else None for row, token in enumerate(best)]
    drawn = [row for row, (sampling, _) in enumerate(wanted) if sampling.temperature > 0 and sound[row]]
    if drawn:
        numbers = [uniform(wanted[row][0].seed, wanted[row][1]) for row in drawn]
        rows = logits if len(drawn) == len(wanted) else logits[drawn]
        for row, token in zip(drawn, _draw(rows, [wanted[row][0] for row in drawn], numbers), strict=True):
            chosen[row] = token
    return chosen


def _draw(logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    kernels = find_kernels(logits.dtype, logits.device)
    if kernels is None:
        return draw_plainly(logits, samplings, numbers)
    tokens: list[int] = kernels.draw(
        logits.contiguous(),
        torch.tensor([each.temperature for each in samplings], dtype=torch.float32),
        torch.tensor([each.top_k for each in samplings], dtype=torch.int64),
        torch.tensor([each.top_p for each in samplings], dtype=torch.float32),
        torch.tensor([each.min_p for each in samplings], dtype=torch.float32),
        torch.tensor(numbers, dtype=torch.float64),
    ).tolist()
    return tokens


def draw_plainly(logits: torch.Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    """A token of each row of logits [n, V], drawn at `numbers` [n], in plain torch."""
    temperatures = torch.tensor([each.temperature for each in samplings], device=logits.device)
    rows = logits.float()
    # The peak is taken off first: a small temperature must not overflow.
    probabilities = torch.softmax((rows - rows.amax(dim=-1, keepdim=True)).div_(temperatures[:, None]), dim=-1)
    for at, sampling in enumerate(samplings):
        keep_likely(probabilities[at], sampling)
    return invert(probabilities, numbers)


def keep_likely(probabilities: torch.Tensor, sampling: Sampling) -> None:
    """Zero, in place, what top-k, top-p and min-p leave out of one row [V]. Tokens as likely as the last one stay."""
    if 0 < sampling.top_k < probabilities.shape[0]:
        least = torch.topk(probabilities, sampling.top_k).values[-1]
        probabilities.masked_fill_(probabilities < least, 0)
    if sampling.top_p < 1.0:
        probabilities.masked_fill_(probabilities < _nucleus_least(probabilities, sampling.top_p), 0)
    if sampling.min_p > 0.0:
        probabilities.masked_fill_(probabilities < sampling.min_p * probabilities.max(), 0)


def _nucleus_least(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest probability of the fewest tokens that together reach `top_p` of the row's mass."""
    target = top_p * probabilities.sum(dtype=torch.float64)
    size = probabilities.shape[0]
    for count in (min(_NUCLEUS, size), size):
        likeliest = torch.topk(probabilities, count).values
        reached = likeliest.cumsum(0, dtype=torch.float64) >= target
        if reached.any():
            return likeliest[int(reached.to(torch.uint8).argmax())]
    return likeliest[-1]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for a request's `index`-th token: the first 53 bits of a hash."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def invert(probabilities: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """For each row of unnormalised probabilities [n, V], the token where their running sum passes numbers[n].

    The sum runs over blocks of tokens first, and then over the tokens of one block.
    """
    rows, vocab = probabilities.shape
    blocks = functional.pad(probabilities, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)  # [n, V / 256, 256]
    masses = blocks.sum(dim=-1, dtype=torch.float64)
    running = masses.cumsum(dim=-1)
    sought = torch.tensor(numbers, dtype=torch.float64, device=probabilities.device)[:, None] * running[:, -1:]
    block = torch.searchsorted(running, sought, right=True)  # [n, 1], never one without mass
    rest = sought - (running.gather(1, block) - masses.gather(1, block))
    inner = blocks[torch.arange(rows, device=block.device), block[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    # Rounding must not lead out of the block.
    rest = rest.clamp(min=0).minimum(torch.nextafter(inner[:, -1:], torch.zeros_like(rest)))
    within = torch.searchsorted(inner, rest, right=True)
    tokens: list[int] = (block * _BLOCK + within).squeeze(1).tolist()
    return tokens


def score_tokens(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """Log-probabilities of `tokens` [n] and of the `top` likeliest under each row of logits [n, V].

    Of equals the first come first, as `likeliest` has it: whatever `top` is, which of a batch's rows share.
    """
    if not tokens:
        return []
    norms = _log_sums(logits)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    own: list[float] = (logits.gather(1, index).squeeze(1).float() - norms).tolist()
    if not top:
        return [Scored(token, score) for token, score in zip(tokens, own, strict=True)]
    ids, values = _first_likeliest(logits, min(top, logits.shape[1]))
    tops = zip(ids.tolist(), (values.float() - norms[:, None]).tolist(), strict=True)
    return [
        Scored(token, score, tuple(zip(ids, values, strict=True)))
        for token, score, (ids, values) in zip(tokens, own, tops, strict=True)
    ]


def _first_likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens of each row [n, V] and their logits, the likelier first and of equals the first.

    `topk` takes any of equals, and others for another count.
    """
    found = torch.topk(logits, min(count + 1, logits.shape[1]), dim=-1)
    values, ids = found.values[:, :count], found.indices[:, :count].clone()
    if found.values.shape[1] > count:
        for row in (found.values[:, count] == values[:, -1]).nonzero().flatten().tolist():
            last = values[row] == values[row, -1]
            ids[row, last] = (logits[row] == values[row, -1]).nonzero().flatten()[: int(last.sum())]
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the sum of each row's exponentials [n] float32, without a second array of logits' size."""
    kernels = find_kernels(logits.dtype, logits.device)
    if kernels is None:
        return torch.logsumexp(logits.float(), dim=-1)
    return kernels.log_sums(logits.contiguous())
