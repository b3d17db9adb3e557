"""Choosing the next token from logits, in float32. What one request gets never depends on its neighbours.

Temperature, top-k, top-p and min-p are applied in this order, as transformers does. A token is drawn by inverting the
distribution at a number that depends on nothing but the request's seed and the token's index, so a request gives the
same tokens again in whatever batch it runs.
"""

import hashlib
from collections.abc import Sequence

import torch

from mint_engine.request import Sampling, Scored

_NUCLEUS = 256  # candidates among which top-p is first tried, before the whole vocabulary is sorted


def choose_tokens(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, int]]) -> list[int]:
    """One token for each row of logits [n, V]; `wanted` has each row's parameters and its token's index."""
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [row for row, (sampling, _) in enumerate(wanted) if sampling.temperature > 0]
    if drawn:
        temperatures = torch.tensor([wanted[row][0].temperature for row in drawn], device=logits.device)
        # The peak is taken off first: a small temperature must not overflow.
        scaled = logits[drawn] - logits[drawn].amax(dim=-1, keepdim=True)
        probabilities = torch.softmax(scaled / temperatures[:, None], dim=-1)
        for at, row in enumerate(drawn):
            keep_likely(probabilities[at], wanted[row][0])
        numbers = [uniform(wanted[row][0].seed, wanted[row][1]) for row in drawn]
        for row, token in zip(drawn, invert(probabilities, numbers), strict=True):
            chosen[row] = token
    return chosen


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
    """For each row of unnormalised probabilities [n, V], the token where their running sum passes numbers[n]."""
    running = probabilities.cumsum(dim=-1, dtype=torch.float64)
    at = torch.tensor(numbers, dtype=torch.float64, device=probabilities.device)[:, None] * running[:, -1:]
    tokens: list[int] = torch.searchsorted(running, at, right=True).squeeze(1).tolist()
    return tokens


def score_tokens(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """Log-probabilities of `tokens` [n] and of the `top` likeliest under each row of logits [n, V]."""
    if not tokens:
        return []
    scores = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    own: list[float] = scores.gather(1, index).squeeze(1).tolist()
    likeliest = torch.topk(scores, min(top, scores.shape[1]), dim=-1)
    tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [
        Scored(token, score, tuple(zip(ids, values, strict=True)))
        for token, score, (ids, values) in zip(tokens, own, tops, strict=True)
    ]
