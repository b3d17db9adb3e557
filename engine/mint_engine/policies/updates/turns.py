"""Which updates are computed together next, decided from the queue alone.

An update longer than one turn takes several, and waits at the queue's end between them, so that no update waits for
more than one turn of each other. Meanwhile its gradient stays in memory. While memory is full of such gradients, no
other long update begins until some have finished; short ones still do.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """What the choice of the next turn needs to know of a queued update."""

    policy: str
    rows: int  # of its next turn, at most
    nbytes: int  # of its gradient
    lasts: bool = False  # may take more than one turn
    begun: bool = False  # has had a turn, and its gradient is in memory
    alone: bool = False  # must be computed without others


def next_turn(queue: Sequence[Waiting], most_rows: int, most_bytes: int) -> list[int]:
    """Return the indices of the updates whose turn is next, within bounds; the first may exceed them by itself.

    Returns at least one unless the queue is empty. A policy's own updates are computed one after another.
    """
    begun = {each.policy for each in queue if each.begun}
    kept = sum(each.nbytes for each in queue if each.begun)  # gradients that may stay in memory until a later turn
    rows, nbytes, full = 0, kept, False
    taken, passed = list[int](), set[str]()
    for at, each in enumerate(queue):
        if each.policy in passed or (each.policy in begun and not each.begun):
            continue
        passed.add(each.policy)
        stays = each.nbytes if each.lasts and not each.begun else 0
        full = full or bool(stays and kept and kept + stays > most_bytes)
        if full and stays:
            continue
        rows += each.rows
        nbytes += 0 if each.begun else each.nbytes
        beyond = rows > most_rows or nbytes > most_bytes
        if taken and (beyond or each.alone or queue[taken[0]].alone):
            break
        taken.append(at)
        kept += stays
    return taken
