"""Whose masks a step looks for first, where it has no time for all of them (`requests.masks`), and what they cost.

Who is late chooses no token in that step. Its last token is computed again in the next one, from which it chooses
what it would have chosen: no answer depends on the time. Whoever has been late for longest comes first, so that of
n requests each gets a token in n steps at least, however long masks take; then whose adapter was served least. A slow
mask is service: else those whose shapes take a step's time would come no later than others for it.
"""

from collections.abc import Callable, Sequence

from mint_engine.requests.grammar import SLOW_S
from mint_engine.scheduling.request import Sequence as Running

Service = Callable[[str], int]  # by adapter

_SERVICE_S = SLOW_S  # of masks, that count as a token of a prompt


def in_turn(sequences: Sequence[Running], service: Service) -> list[int]:
    """The places of sequences, by whose mask is looked for first."""

    def rank(at: int) -> tuple[int, int, int]:
        each = sequences[at]
        return service(each.request.adapter), -each.late, each.arrival

    turns = sorted(range(len(sequences)), key=rank)
    longest = max(turns, key=lambda at: sequences[at].late)  # the first of those
    turns.remove(longest)
    return [longest, *turns]


def cost(paid_s: float) -> int:
    """The service of one mask that took so many seconds of a thread; 0 of most."""
    return int(paid_s / _SERVICE_S)
