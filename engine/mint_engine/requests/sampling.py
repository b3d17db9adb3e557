"""Chooses the next token from logits. The result of one row never depends on its neighbours.

A greedy row costs an argmax in the logits' own dtype; only others need probabilities, in float32.
Temperature, top-k, top-p and min-p are applied in this order, as in transformers. A token is drawn by inverting the
distribution at a number that depends only on the request's seed and the token's index. So a request gives the same
tokens in any batch that gives it the same logits: own kernels do, bit for bit; transformers' modules do as far as the
library's matrix products do not depend on the batch's shape. Tests compare the kernel that draws with `draw_plainly`.
"""

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional

from mint_engine.kernels.library import find_kernels
from mint_engine.model.device import put, take
from mint_engine.model.greedy import greedy_tokens
from mint_engine.requests.events import Scored
from mint_engine.requests.parameters import Sampling

_NUCLEUS = 256  # candidates among which top-p is tried first, before the complete vocabulary is sorted
_WHOLE_ROWS = 8  # rows whose complete vocabulary is sorted at a time: more would only take more memory
_EQUALS = 16  # tokens beyond the likeliest, among which the last one's equals are usually found
_BLOCK = 256  # tokens per block whose mass is summed first when a distribution is inverted


def choose_tokens(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, int]]) -> list[int | None]:
    """Return one token for each row of logits [n, V]; `wanted` has each row's parameters and its token's index.

    The token is None if the row's maximum is NaN or infinite, which means that weights overflowed.
    """
    best, sound = greedy_tokens(logits)
    chosen: list[int | None] = [token if sound[row] else None for row, token in enumerate(best)]
    drawn = [row for row, (sampling, _) in enumerate(wanted) if not sampling.greedy and sound[row]]
    if drawn:
        numbers = [uniform(wanted[row][0].seed, wanted[row][1]) for row in drawn]
        rows = logits if len(drawn) == len(wanted) else take(logits, drawn)
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
    """Draw a token from each row of logits [n, V] at `numbers` [n], in plain torch."""
    temperatures = put(torch.tensor([each.temperature for each in samplings]), logits.device)
    rows = logits.float()
    # Subtract the maximum first, so that a small temperature does not overflow.
    probabilities = torch.softmax((rows - rows.amax(dim=-1, keepdim=True)).div_(temperatures[:, None]), dim=-1)
    keep_likely(probabilities, samplings)
    return invert(probabilities, numbers)


def keep_likely(probabilities: torch.Tensor, samplings: Sequence[Sampling]) -> None:
    """Zero, in place, what top-k, top-p and min-p exclude from rows [n, V]. Ties with the last kept token stay.

    Process all rows together: on a GPU each call costs more than the numbers of a few more rows.
    """
    size, device = probabilities.shape[1], probabilities.device
    counts = [each.top_k if 0 < each.top_k < size else size for each in samplings]
    if bounded := [each for each in counts if each < size]:
        likeliest = torch.topk(probabilities, max(bounded), dim=-1).values
        last = put(torch.tensor([min(each, max(bounded)) - 1 for each in counts]), device)[:, None]
        _zero_below(probabilities, likeliest.gather(1, last), [each < size for each in counts])
    if any(cut := [each.top_p < 1.0 for each in samplings]):
        # A share of 0 is reached by the first token, so rows that are not cut are never sorted as a whole.
        wanted = [each.top_p if each.top_p < 1.0 else 0.0 for each in samplings]
        shares = put(torch.tensor(wanted, dtype=torch.float64), device)[:, None]
        _zero_below(probabilities, _nucleus_least(probabilities, shares), cut)
    if any(each.min_p > 0.0 for each in samplings):
        shares = put(torch.tensor([each.min_p for each in samplings]), device)[:, None]
        _zero_below(probabilities, shares * probabilities.amax(dim=-1, keepdim=True), [True] * len(samplings))


def _zero_below(probabilities: torch.Tensor, least: torch.Tensor, chosen: Sequence[bool]) -> None:
    """Zero what is less than least [n, 1], in the chosen of rows [n, V]."""
    if not all(chosen):
        least = least.masked_fill(~put(torch.tensor(chosen), least.device)[:, None], 0)
    probabilities.masked_fill_(probabilities < least, 0)


def _nucleus_least(probabilities: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return the smallest probability among the fewest tokens that reach their share of each row's mass [n, 1]."""
    target = shares * probabilities.sum(dim=-1, keepdim=True, dtype=torch.float64)
    size = probabilities.shape[1]
    likeliest = torch.topk(probabilities, min(_NUCLEUS, size), dim=-1).values
    reached = likeliest.cumsum(-1, dtype=torch.float64) >= target
    least = _gather_first(likeliest, reached)
    left = (~reached[:, -1]).nonzero().squeeze(1)
    for some in torch.split(left, _WHOLE_ROWS) if left.numel() else ():
        every = torch.topk(probabilities[some], size, dim=-1).values
        reached = every.cumsum(-1, dtype=torch.float64) >= target[some]
        reached[:, -1] = True  # rounding may have kept it just below
        least[some] = _gather_first(every, reached)
    return least


def _gather_first(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the first of the chosen values [n, k] of each row [n, 1]."""
    return values.gather(1, chosen.to(torch.uint8).argmax(dim=-1, keepdim=True))


def uniform(seed: int, index: int) -> float:
    """Return a number in [0, 1) for a request's `index`-th token: 53 bits of a hash."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def invert(probabilities: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """Return the token at which the running sum of each row of unnormalised probabilities [n, V] passes numbers[n].

    The numbers are fractions of the row's sum. The search runs over blocks of tokens first, then within one block.
    """
    rows, vocab = probabilities.shape
    blocks = functional.pad(probabilities, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)  # [n, V / 256, 256]
    masses = blocks.sum(dim=-1, dtype=torch.float64)
    running = masses.cumsum(dim=-1)
    sought = put(torch.tensor(numbers, dtype=torch.float64), probabilities.device)[:, None] * running[:, -1:]
    block = torch.searchsorted(running, sought, right=True)  # [n, 1], never one without mass
    rest = sought - (running.gather(1, block) - masses.gather(1, block))
    inner = blocks[torch.arange(rows, device=block.device), block[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    # Rounding must not lead beyond the block.
    rest = rest.clamp(min=0).minimum(torch.nextafter(inner[:, -1:], torch.zeros_like(rest)))
    within = torch.searchsorted(inner, rest, right=True)
    tokens: list[int] = (block * _BLOCK + within).squeeze(1).tolist()
    return tokens


def score_tokens(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """Return the log-probabilities of `tokens` [n], and the `top` likeliest tokens of each row of logits [n, V].

    Ties are ordered by token, as in `greedy_tokens`: the result does not depend on `top`, which a batch shares.
    """
    if not tokens:
        return []
    norms = _log_sums(logits)
    index = put(torch.tensor(tokens), logits.device)[:, None]
    own, count = logits.gather(1, index), min(top, logits.shape[1])
    ids, values = _first_likeliest(logits, count) if count else (index[:, :0], own[:, :0])
    scores = torch.cat((own, values), dim=1).float() - norms[:, None]
    numbers = torch.cat((scores.double(), ids.double()), dim=1).tolist()  # one wait for a device beside us
    return [
        Scored(token, row[0], tuple(zip(map(int, row[1 + count :]), row[1 : 1 + count], strict=True)))
        for token, row in zip(tokens, numbers, strict=True)
    ]


def _first_likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` likeliest tokens of each row [n, V] and their logits, likeliest first, ties by token.

    `topk` alone picks any of equal tokens, and different ones for different counts. So it picks a few more: to look
    through a row's complete vocabulary for the first of its equals takes longer than `topk`.
    """
    found = torch.topk(logits, min(count + _EQUALS, logits.shape[1]), dim=-1)
    ids, order = found.indices.sort(dim=-1)
    values, order = found.values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    if ids.shape[1] < logits.shape[1]:
        cut = (values[:, -1] == values[:, count - 1]).tolist()  # more of the last value's tokens may exist
        for row in itertools.compress(range(len(cut)), cut):
            last = values[row, :count] == values[row, -1]
            ids[row, :count][last] = (logits[row] == values[row, -1]).nonzero().flatten()[: int(last.sum())]
    return ids[:, :count], values[:, :count]


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """Return each row's logsumexp [n] in float32; own kernels need no second array of the logits' size."""
    kernels = find_kernels(logits.dtype, logits.device)
    if kernels is None:
        return torch.logsumexp(logits.float(), dim=-1)
    return kernels.log_sums(logits.contiguous())
