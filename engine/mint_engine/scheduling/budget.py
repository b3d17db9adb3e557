"""Shares a step's tokens out among running requests: tenants before training, decoding requests before prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mint_engine.scheduling.background import SHARE
from mint_engine.scheduling.request import Completion

EARLIEST = 8  # at least one in 8 prompt tokens of a step belongs to the earliest prompt, whatever else arrives
FREE_ROWS = 4  # background rows that cost tenants next to nothing: a step reads all weights however few rows it has

Rank = Callable[[Completion], tuple[int | tuple[int, ...], int]]


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part of a step."""

    completion: Completion
    length: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the completion's last token, so that a next token is chosen."""
        return self.length == self.completion.pending


def split_budget(running: Sequence[Completion], step_tokens: int, rank: Rank) -> list[Share]:
    """Return what a step computes: tenants' shares first, then those of background requests."""
    background = [each for each in running if each.request.background]
    if not background:
        return _fill(running, step_tokens, rank)
    tenants = [each for each in running if not each.request.background]
    shares = _fill(tenants, step_tokens - min(len(background), FREE_ROWS), rank)
    rows = sum(share.length for share in shares)
    beside = max(FREE_ROWS, int(SHARE * rows)) if rows else step_tokens
    return shares + _fill(background, min(beside, step_tokens - rows), rank)


def _fill(completions: Sequence[Completion], budget: int, rank: Rank) -> list[Share]:
    """Share the budget: a token for every decoding request, then prompts, in the order of `rank` if it is too small.

    The earliest prompt always gets its part of what prompts get: adapters that have not been served yet precede it
    by rank, and a large catalog may bring new ones without end.
    """
    decoding = [each for each in completions if each.pending == 1]
    if len(decoding) > budget:
        decoding = sorted(decoding, key=rank)[:budget]
    shares = [Share(each, 1) for each in decoding]
    left = budget - len(shares)
    prompts = sorted((each for each in completions if each.pending > 1), key=rank)
    earliest = min(prompts, key=lambda each: each.arrival, default=None)
    kept = min(earliest.pending, -(-left // EARLIEST)) if earliest is not None else 0
    for each in prompts:
        if each is earliest:
            kept = 0
        if left > kept:
            shares.append(Share(each, min(each.pending, left - kept)))
            left -= shares[-1].length
    return shares
