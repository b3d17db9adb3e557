"""Finding the first of many names without keeping other requests waiting."""

import heapq
from collections.abc import Iterable, Mapping

from mint_gateway.security.scope_filter import in_pieces
from mint_gateway.time_slices import TimeSlices

PIECE = 1_000  # names looked at between two looks at the clock


async def first_names(among: Iterable[Mapping[str, object]], after: str, most: int, prefix: str = "") -> list[str]:
    """Return the first `most` names after `after` that begin with `prefix`, sorted, each once.

    Names are looked at once each; few more than `most` are kept at a time.
    """
    slices, found, last = TimeSlices(), set[str](), None
    for names in among:
        for piece in in_pieces(names, PIECE):
            fitting = (name for name in piece if name > after and name.startswith(prefix))
            found.update(name for name in fitting if last is None or name <= last)
            if len(found) >= 2 * most + PIECE:
                first = heapq.nsmallest(most, found)
                found, last = set(first), first[-1]
            await slices.rest()
    return heapq.nsmallest(most, found)
