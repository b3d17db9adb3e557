"""The order in which a step computes masks if it has no time for all of them (`requests.masks`), and their cost.

A request whose mask is late chooses no token in that step. Its last token is computed again in the next step, from
which it chooses the same token that it would have chosen: no answer depends on time. The request that has been late
longest comes first, so that each of n requests gets a token at least every n steps, however long masks take; then
come those of the least served clients and parties. A slow mask counts as service: otherwise requests whose shapes
take all of a step's time would not come later than others for it.
"""

from collections.abc import Callable, Sequence

from mint_engine.requests.grammar import SLOW_S
from mint_engine.scheduling.request import Completion, Party

Served = Callable[[Party], int | tuple[int, ...]]  # returns a party's sort key: the least served comes first

_SERVICE_S = SLOW_S  # seconds of mask time that count as one prompt token


def in_turn(completions: Sequence[Completion], served: Served) -> list[int]:
    """Return the indices of `completions` in the order in which to compute their masks."""

    def rank(at: int) -> tuple[int | tuple[int, ...], int, int]:
        each = completions[at]
        return served(each.request.party), -each.late, each.arrival

    turns = sorted(range(len(completions)), key=rank)
    longest = max(turns, key=lambda at: completions[at].late)  # the first of equals
    turns.remove(longest)
    return [longest, *turns]


def cost(paid_s: float) -> int:
    """Return the service to charge for a mask that took `paid_s` seconds of a thread; 0 for most."""
    return int(paid_s / _SERVICE_S)
